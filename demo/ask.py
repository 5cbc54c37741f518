"""`python -m demo.ask URL`: exit status 0 when it answers 200; a health command."""

from __future__ import annotations

import sys
import urllib.request

TRY_SECONDS = 5.0


def main() -> int:
    """Ask once."""
    try:
        with urllib.request.urlopen(sys.argv[1], timeout=TRY_SECONDS) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:
        print(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
