"""What this host lets orders do here: its owner's word, whoever has signed the order."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from drengine.config import WORDS, choice, option
from drengine.control.allowed import check_commands, is_allowed
from drengine.control.attach import AttachOrder
from drengine.control.config import HOST_VERBS, check_verbs
from drengine.control.refusals import OrderRefusedError

SYSTEM = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/root",
    "/sbin",
    "/sys",
    "/usr",
)
"""Where nothing is mounted unless `roots` says so."""


def _check_roots(roots: Sequence[str]) -> None:
    if strange := [each for each in roots if not each.startswith("/") or ".." in each.split("/")]:
        raise ValueError(f"{strange[0]!r} is no absolute path")


@dataclass(frozen=True)
class AllowOptions:
    """[allow]"""

    verbs: tuple[str, ...] = option(
        WORDS, default=HOST_VERBS, help="What orders may have done here.", check=check_verbs(HOST_VERBS)
    )
    roots: tuple[str, ...] | None = option(
        WORDS,
        default=None,
        example=["/srv"],
        help="Directories in and below which disks may be mounted, judged without links. Absent: anywhere but at `/`, "
        "and in /etc, /usr, /boot, /root and others of the system.",
        check=_check_roots,
    )
    options: tuple[str, ...] | None = option(
        WORDS,
        default=None,
        example=["ro", "noatime"],
        help="Options that orders may name for mounts. Absent: any, also `suid` and `dev`.",
    )
    commands: tuple[str, ...] | None = option(
        WORDS,
        default=None,
        example=["systemctl start shop-*"],
        help="Commands that may be run (`start`, `stop`, `health`), compared word by word: `*` and `?` stand for "
        "characters of a word, `...` at the end for any further words. Absent: any; an empty list: none.",
        check=check_commands,
    )
    interfaces: tuple[str, ...] | None = option(
        WORDS,
        default=None,
        example=["eth1"],
        help="Interfaces of this host that may take over addresses of workloads (`interface`). Absent: any.",
    )
    users: tuple[str, ...] | None = option(
        WORDS,
        default=None,
        example=["shop"],
        help="Users as whom commands may run; `root` is who an order without `user` means. Absent: any.",
    )
    links: str = option(
        choice("follow", "refuse"),
        default="follow",
        help="`refuse`: no symbolic link on an attached disk is followed, by no process of this host (nosymfollow; "
        "Linux 5.14). They lead wherever the replica's writer wanted, and root follows; some programs need theirs.",
    )

    def require(self, order: AttachOrder) -> None:
        """Judge an order before anything is done.

        Raises:
            OrderRefusedError: order-not-allowed.
        """
        settings = order.settings
        for mount in settings.mounts:
            self.require_place(Path(mount.at))
            given = [each for option in mount.options for each in option.split(",")]
            if self.options is not None and (strange := set(given) - set(self.options)):
                raise _not_allowed(f"the mount option {min(strange)[:60]!r} ([allow] options)")
        if settings.interface and self.interfaces is not None and settings.interface not in self.interfaces:
            raise _not_allowed(f"addresses on {settings.interface[:60]!r} ([allow] interfaces)")
        for argv in filter(None, (settings.start, settings.stop, settings.health)):
            self.require_command(argv, settings.user)

    def require_command(self, argv: Sequence[str], user: str) -> None:
        """Judge a command that would run as a user; "" is root.

        Raises:
            OrderRefusedError: order-not-allowed.
        """
        if self.commands is not None and not is_allowed(argv, self.commands):
            raise _not_allowed(f"the command {shlex.join(argv)[:200]!r} ([allow] commands)")
        if self.users is not None and (user or "root") not in self.users:
            raise _not_allowed(f"commands as user {(user or 'root')[:60]!r} ([allow] users)")

    def require_place(self, place: Path) -> None:
        """Judge where a disk is to be mounted; a path without links is judged for good.

        Raises:
            OrderRefusedError: order-not-allowed.
        """
        at = PurePosixPath("/" + str(place).lstrip("/"))  # two slashes at the beginning are another root to pathlib
        if self.roots is None:
            allowed = at != PurePosixPath("/") and not any(at.is_relative_to(each) for each in SYSTEM)
        else:
            allowed = any(at.is_relative_to(root) for root in (*self.roots, *_resolved(self.roots)))
        if not allowed:
            raise _not_allowed(f"mounting at {place} ([allow] roots)")


def _resolved(roots: Sequence[str]) -> list[str]:
    """What the host's owner means, where a root lies behind a link of the host itself."""
    return [str(Path(each).resolve()) for each in roots]


def _not_allowed(what: str) -> OrderRefusedError:
    return OrderRefusedError("order-not-allowed", what)
