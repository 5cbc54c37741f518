"""What this host is, in a few words."""

from __future__ import annotations

import functools
import platform


@functools.cache
def described_host() -> str:
    """``Debian GNU/Linux 12 (bookworm), 6.1.0-18-amd64 x86_64, CPython 3.11``; what is not known is left out."""
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        system = ""
    python = f"{platform.python_implementation()} {'.'.join(platform.python_version_tuple()[:2])}"
    kernel = f"{platform.release()} {platform.machine()}"
    return ", ".join(each[:80] for each in (system, kernel, python) if each)
