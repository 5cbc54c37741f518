"""The guest's system in the helper machine: found, mounted, read, changed by its own programs.

Everything here is an order to the helper. Paths are the guest's own, followed inside its root (a link to /etc/passwd
there is the guest's). A dry guest is only read; what would be done is collected all the same.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import difflib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from drengine.conversion.errors import CONVERSION_FAILED, CONVERSION_HELPER
from drengine.conversion.helper import ORDER_SECONDS, Answer, Helper
from drengine.conversion.network.plan import PRIVATE
from drengine.conversion.values import Change, bounded
from drengine.model.errors import DrengineError

KEPT = "/var/lib/drengine/conversion"
BEFORE = f"{KEPT}/before"
"""Where the guest's own files are kept that were replaced."""
UNFINISHED, CHANGES = f"{KEPT}/unfinished", f"{KEPT}/changes"
"""The record of what is changed, a line of JSON before each change; its name says whether the last change is made.

A conversion that finds it unfinished makes anew what is made from files, and tells what was changed before as well.
"""
FILE_BYTES_MAX = 256 << 10
PROGRAM_SECONDS = 900.0
_TOOL = "/run/drengine/busybox"
_ENVIRONMENT = (
    "env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C TMPDIR=/tmp "
    "DEBIAN_FRONTEND=noninteractive GRUB_DISABLE_OS_PROBER=true"
)
_MOUNT = f"""
mount --bind /dev /guest/dev && mount --bind /dev/pts /guest/dev/pts && mount --bind /proc /guest/proc &&
mount --bind /sys /guest/sys && mount -t tmpfs tmpfs /guest/run && mount -t tmpfs tmpfs /guest/tmp &&
mount -t tmpfs tmpfs /guest/var/tmp && mkdir -p /guest/run/drengine /guest/run/lock && cp /bin/busybox /guest{_TOOL}
"""
_END = """
for each in /proc/[0-9]*; do
  case "$(readlink "$each/root")" in /guest*) kill -9 "${each##*/}" ;; esac
done
sync
for try in 1 2 3 4 5 6 7 8; do
  sed -n 's,^[^ ]* \\(/guest[^ ]*\\) .*,\\1,p' /proc/mounts | sort -r |
    while read -r each; do umount "$each" 2>/dev/null; done
  grep -q ' /guest' /proc/mounts || break
  sleep 0.2
done
sync
! grep ' /guest' /proc/mounts
"""


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system of the guest: device, where in the guest, type and options."""

    device: str
    at: str
    kind: str
    options: str = "rw"


class Recorded(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the record. `conversion` is the name of the one that begins with this line."""

    conversion: str = ""
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()


class Guest:
    """A mounted guest. `changes` are those that are made now, or in a dry one would be; `notes` are for people.

    Args:
        name: the conversion's.
        again: it may have been through with everything before, and nobody have heard of it.
    """

    def __init__(self, helper: Helper, name: str, *, dry: bool, again: bool = False) -> None:
        self._helper = helper
        self._name = name
        self._dry = dry
        self._again = again
        self.changes: list[Change] = []
        self.notes: list[str] = []
        self.unfinished = False
        self._begun = False
        self._earlier: list[Recorded] = []
        self._recorded = (0, 0)

    def mount(self, mounts: Iterable[Mount]) -> None:
        """Mount its file systems, the root first, and what its programs need of a running system.

        Raises:
            DrengineError: CONVERSION_FAILED.
        """
        lines = ["set -e", "mkdir -p /guest"]
        for each in mounts:
            at = shlex.quote(f"/guest{each.at if each.at != '/' else ''}")
            lines.append(f"mount -t {each.kind} -o {shlex.quote(each.options)} {shlex.quote(each.device)} {at}")
        answer = self._helper.order("\n".join((*lines, _MOUNT)))
        if not answer.ok:
            raise DrengineError(
                CONVERSION_FAILED, f"the guest's file systems can't be mounted: {bounded(answer.errors)}"
            )
        found = self.files(UNFINISHED, CHANGES)
        self.unfinished = UNFINISHED in found
        record = list(read_record(found.get(UNFINISHED if self.unfinished else CHANGES, "")))
        whose = [line.conversion for line in record if line.conversion]
        if not self._dry and (self.unfinished or (self._again and whose[-1:] == [self._name])):
            self._earlier = record

    def told(self) -> tuple[tuple[Change, ...], tuple[str, ...]]:
        """All changes in their order, with those of tries that were interrupted, and all notes."""
        made: dict[tuple[str, str], Change] = {}
        for each in (*(change for line in self._earlier for change in line.changes), *self.changes):
            made.setdefault((each.what, each.path), each)
        notes = dict.fromkeys((*(note for line in self._earlier for note in line.notes), *self.notes))
        return tuple(made.values()), tuple(notes)

    def finished(self) -> None:
        """The last change is made."""
        if self._begun or self.unfinished:
            self._do(f"mv {UNFINISHED} {CHANGES}", "the last change can't be noted")

    def unmount(self) -> None:
        """End what still runs of the guest, and unmount everything: from then on the disks hold all of it.

        Raises:
            DrengineError: CONVERSION_FAILED.
        """
        answer = self._helper.order(_END)
        if not answer.ok:
            raise DrengineError(
                CONVERSION_FAILED, f"the guest's file systems can't be unmounted: {bounded(answer.text)}"
            )

    def inside(self, script: str, seconds: float = ORDER_SECONDS) -> Answer:
        """Run a shell script inside the guest's root, by our own tools."""
        return self._helper.order(f"chroot /guest {_TOOL} sh -c {shlex.quote(script)}", seconds)

    def files(self, *patterns: str) -> dict[str, str]:
        """Files of the guest by path; what is no UTF-8 in them comes back as it is when they are written.

        Raises:
            DrengineError: CONVERSION_FAILED, one is too large: written again, it would lose its end.
        """
        script = (
            f'for f in {" ".join(patterns)}; do [ -f "$f" ] && '
            f'echo $(printf %s "$f" | base64 -w 0) $(head -c {FILE_BYTES_MAX + 1} "$f" | base64 -w 0); done; true'
        )
        found = {}
        for line in self.inside(script).text.splitlines():
            path, content = map(_decoded, line.partition(" ")[::2])
            if len(content.encode(errors="surrogateescape")) > FILE_BYTES_MAX:
                raise DrengineError(CONVERSION_FAILED, f"{bounded(path)} is larger than {FILE_BYTES_MAX >> 10} KiB")
            found[path] = content
        return found

    def there(self, *paths: str) -> frozenset[str]:
        """Which of these paths exist."""
        script = (
            f"for f in {' '.join(map(shlex.quote, paths))}; do {{ [ -e $f ] || [ -L $f ]; }} && echo $f; done; true"
        )
        return frozenset(self.inside(script).text.splitlines()) & frozenset(paths)

    def put(self, what: str, files: Mapping[str, str], before: Mapping[str, str], *, mode: str = "") -> bool:
        """Write files that differ from what stands there, each as a whole; whether anything differed.

        The guest's own are kept beside. A new file is only root's to write; `mode` says more.
        """
        differ = {path: text for path, text in files.items() if before.get(path) != text}
        for path, text in differ.items():
            self.changes.append(Change(what=what, path=path, **_difference(before.get(path, ""), text)))
            quoted, new = shlex.quote(path), shlex.quote(f"{path}.drengine-new")
            content = base64.b64encode(text.encode(errors="surrogateescape")).decode()
            script = (
                f"set -e; {_keep(path)} mkdir -p $(dirname {quoted}); [ ! -L {quoted} ] || rm {quoted}; "
                f"if [ -e {quoted} ]; then cp -p {quoted} {new}; else : > {new}; chmod {mode or '644'} {new}; fi; "
                f"echo {content} | base64 -d | dd of={new} conv=fsync 2>&1; mv {new} {quoted}"
            )
            self._do(script, f"{path} can't be written")
        return bool(differ)

    def set_aside(self, what: str, paths: Sequence[str], before: Mapping[str, str]) -> None:
        """Take files away; they are kept under BEFORE."""
        for path in paths:
            shown = "(not shown)" if path.startswith(PRIVATE) else bounded(before.get(path, ""))
            self.changes.append(Change(what=what, path=path, before=shown))
            self._do(f"set -e; {_keep(path)} rm -f {shlex.quote(path)}", f"{path} can't be set aside")

    def do(self, what: str, path: str, script: str, *, after: str) -> None:
        """Another change of ours: a script inside the guest's root."""
        self.changes.append(Change(what=what, path=path, after=after))
        self._do(script, f"{path}: {after}")

    def program(self, what: str, path: str, argv: Sequence[str], *, before: str = "", after: str = "") -> None:
        """Have a program of the guest's own run, as its change to `path`.

        Raises:
            DrengineError: CONVERSION_FAILED, with its last words.
        """
        self.changes.append(Change(what=what, path=path, before=before, after=after or shlex.join(argv)))
        if not self._dry:
            self._do("true", f"{path} can't be noted")
            answer = self.asked(argv)
            if not answer.ok:
                words = bounded(f"{answer.text[-1024:]}\n{answer.errors[-1024:]}".strip())
                raise DrengineError(CONVERSION_FAILED, f"{shlex.join(argv)} ended with {answer.status}: {words}")

    def asked(self, argv: Sequence[str], *, into: str = "") -> Answer:
        """What a program of the guest says; it is asked in a dry conversion, too. `into` is a shell's pipe of ours."""
        pipe = f" | {into}" if into else ""
        return self._helper.order(f"{_ENVIRONMENT} chroot /guest {shlex.join(argv)}{pipe}", PROGRAM_SECONDS)

    def _do(self, script: str, problem: str) -> None:
        if not self._dry:
            answer = self.inside(self._record() + script)
            if not answer.ok:
                raise DrengineError(CONVERSION_FAILED, f"{problem}: {bounded(answer.errors)}")

    def _record(self) -> str:
        """A script that notes what is not yet noted, durably."""
        changes, notes = self._recorded
        new = Recorded(
            conversion="" if self._begun else self._name,
            changes=tuple(self.changes[changes:]),
            notes=tuple(self.notes[notes:]),
        )
        self._recorded, self._begun = (len(self.changes), len(self.notes)), True
        if new == Recorded():
            return ""
        line = shlex.quote(msgspec.json.encode(new).decode())
        return f"mkdir -p {KEPT} && printf '%s\\n' {line} >> {UNFINISHED} && sync || exit; "


def read_record(text: str) -> Iterator[Recorded]:
    """Its lines. The last one may have been cut off: then its change was not begun."""
    for line in text.split("\n"):
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            read = msgspec.json.decode(line.encode(errors="replace"), type=Recorded)
            yield Recorded(
                conversion=bounded(read.conversion),
                changes=tuple(_bounded(change) for change in read.changes),
                notes=tuple(map(bounded, read.notes)),
            )


def _bounded(change: Change) -> Change:
    return Change(**{name: bounded(getattr(change, name)) for name in Change.__struct_fields__})


def _keep(path: str) -> str:
    """A copy of the guest's own file, named once it is whole and durable: the first that was kept stays."""
    kept, new, quoted = shlex.quote(BEFORE + path), shlex.quote(f"{BEFORE}{path}.new"), shlex.quote(path)
    copy = f"mkdir -p $(dirname {kept}); rm -rf {new}; cp -a {quoted} {new}; sync; mv {new} {kept}"
    return f"if [ -e {quoted} ] && [ ! -e {kept} ]; then {copy}; fi;"


def _difference(before: str, after: str) -> dict[str, str]:
    """The lines that differ, as they were and as they are."""
    old, new = before.splitlines(), after.splitlines()
    gone, come = [], []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            gone += old[a:b]
            come += new[c:d]
    return {"before": bounded("\n".join(gone)), "after": bounded("\n".join(come))}


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode(errors="surrogateescape")
    except binascii.Error as error:
        raise DrengineError(CONVERSION_HELPER, "the helper machine answered something that can't be read") from error
