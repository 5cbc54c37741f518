"""Customers: they order, one after the other, and remember what was confirmed and when.

python -m demo.customers URL FILE
"""

from __future__ import annotations

import json
import struct
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

_RECORD = struct.Struct("<Qd")
PAUSE_SECONDS = 0.005
TRY_SECONDS = 10.0


def order_forever(url: str, confirmed: Path) -> None:
    """Order until killed, or until the shop is gone."""
    with confirmed.open("ab", buffering=0) as file:
        number = 0
        while True:
            body = json.dumps({"item": f"thing {number % 97}", "amount": number % 1009}).encode()
            try:
                with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=TRY_SECONDS) as answer:
                    number = json.loads(answer.read())["number"]
            except (OSError, ValueError):
                return
            file.write(_RECORD.pack(number, time.time()))
            time.sleep(PAUSE_SECONDS)


def confirmed_orders(path: Path) -> dict[int, float]:
    """Number of each confirmed order and when it was."""
    raw = path.read_bytes() if path.exists() else b""
    return dict(_RECORD.iter_unpack(raw[: len(raw) // _RECORD.size * _RECORD.size]))


def audit(port: int) -> dict[str, Any] | None:
    """What the shop at a port says of its orders; None when nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/orders", timeout=TRY_SECONDS) as answer:
            found: dict[str, Any] = json.loads(answer.read())
    except (OSError, ValueError):
        return None
    return found


if __name__ == "__main__":
    order_forever(sys.argv[1], Path(sys.argv[2]))
