"""How an agent stands, for people: what `status` and the commands that change it print."""

from __future__ import annotations

from typing import Any

from drengine.model.sectors import SECTOR_BYTES
from drengine.terminal import emit_json, human_bytes, human_duration


def show_standing(answer: dict[str, Any], json: bool) -> None:
    """Print what the agent answered to `status`."""
    if json:
        emit_json(answer)
        return
    reason = "" if answer["reason"] == "none" else f" ({answer['reason']})"
    lag = human_duration(answer["lag_seconds"]) if answer["has_point"] else "no recovery point yet"
    rows = [
        ("source", f"{answer['source']} to {answer['target']}, tracker {answer['tracker']}"),
        ("state", f"{answer['state']}{reason}"),
        ("standing", "" if answer["standing"] == "in-charge" else _not_in_charge(answer)),
        ("because", answer["why"]),
        ("hint", answer["hint"]),
        ("detail", answer["detail"]),
        ("lag", lag),
        ("backlog", human_bytes(answer["backlog_bytes"])),
        ("sent", f"{human_bytes(answer['bytes_sent'])} for {human_bytes(answer['bytes_sent_plain'])} of changes"),
        ("points", str(answer["points_cut"])),
        ("settings", ", ".join(f"{name} {value} ({where})" for name, (value, where) in answer["settings"].items())),
        ("process", str(answer["pid"])),
    ]
    if answer["state"] in ("INITIAL_SYNC", "RESCAN"):
        done, total = answer["sweep_scanned_bytes"], answer["sweep_bytes"]
        rows.insert(2, ("progress", f"{human_bytes(done)} of {human_bytes(total)}"))
    rows += [("volume", _volume(v)) for v in answer["volumes"]]
    for name, text in rows:
        if text:
            print(f"{name:9} {text}")


def _volume(told: dict[str, Any]) -> str:
    text = f"{told['name']}  {human_bytes(told['size_bytes'])}  {told['path']}"
    if told["sector_bytes"] not in (0, SECTOR_BYTES):
        text += f"  sectors of {told['sector_bytes']} bytes"
    if told["declared"] != told["identity"]:
        text += f"  adopted in place of {told['declared']}"
    return text + ("  nothing tells it from another disk: give it a serial number" if told["anonymous"] else "")


def _not_in_charge(answer: dict[str, Any]) -> str:
    parts = [f"{answer['standing']} ({answer['fence_reason']}): it serves nobody"]
    if answer["reversing"]:
        parts.append(f"its disks are on the way to point {answer['reversing']}")
    elif answer["equals"]:
        parts.append(f"its disks equal point {answer['equals']}")
    if answer["replaced"]:
        parts.append(f"replaced, and still without content: {', '.join(answer['replaced'])}")
    if answer["way_home"]:
        parts.append(f"now: {answer['way_home']}")
    return ", ".join(parts)
