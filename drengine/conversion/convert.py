"""A whole conversion: find the system, see what differs, change it, look whether it holds.

Done twice it changes nothing the second time; killed anywhere it is done again, or its branch is thrown away.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from drengine.conversion.boot import convert_entries, convert_grub_defaults, names_hardware
from drengine.conversion.drivers import (
    DRIVERS,
    GuestKernel,
    dracut_files,
    initramfs_file,
    initramfs_tools_files,
    module_name,
    rebuild_command,
)
from drengine.conversion.errors import CONVERSION_FAILED, NO_BOOT, NO_INITRAMFS_TOOL, NO_ROOM, WRONG_FIRMWARE
from drengine.conversion.fstab import convert_fstab
from drengine.conversion.guest import BEFORE, KEPT, Guest
from drengine.conversion.helper import Helper, HelperDisk, HelperOptions
from drengine.conversion.judge import ROOM_BYTES_MIN
from drengine.conversion.network.named import HEADER
from drengine.conversion.network.plan import FILES, PRIVATE, PROGRAMS, plan_network
from drengine.conversion.system import System, find_system, has_esp
from drengine.conversion.values import Converted, Wish
from drengine.model.errors import DrengineError

_FSTAB, _GRUB = "/etc/fstab", "/etc/default/grub"
_RESUME = "/etc/initramfs-tools/conf.d/resume"
_GRUB_FILES = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
_ENTRIES = ("/boot/loader/entries/*.conf", "/etc/kernel/cmdline")
_MAP = ("/boot/grub/device.map", "/boot/grub2/device.map")
_SELINUX, _RELABEL = "/etc/selinux/config", "/.autorelabel"
_GETTY = "/etc/systemd/system/getty.target.wants/serial-getty@{console}.service"
_UNIT = "/etc/systemd/system/drengine-first-boot.service"
_UNIT_WANTED = "/etc/systemd/system/multi-user.target.wants/drengine-first-boot.service"
_SCRIPT = f"{KEPT}/first-boot"
_UNIT_TEXT = f"""{HEADER}[Unit]
Description=Once after drengine made this disk fit for another machine
ConditionPathExists={_SCRIPT}
After=network.target

[Service]
Type=oneshot
ExecStart=/bin/sh {_SCRIPT}
ExecStartPost=/bin/mv {_SCRIPT} {_SCRIPT}.done

[Install]
WantedBy=multi-user.target
"""
_LOADERS = ("shimx64.efi", "grubx64.efi", "mmx64.efi")
_IS_GRUB = "dd if={disk} bs=512 count=1 2>/dev/null | grep -q GRUB"


def convert(
    directory: Path,
    name: str,
    disks: Sequence[HelperDisk],
    wish: Wish,
    options: HelperOptions,
    *,
    timeout_seconds: float,
    again: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    cancelled: threading.Event | None = None,
) -> Converted:
    """Make disks boot on the machine that is wished for.

    Args:
        directory: the helper machine's own place, gone afterwards.
        name: the same whenever the same conversion is begun again: what an earlier try left running is ended first.
        again: an earlier try may have got through unheard: what that changed is told as well. Of one that did not get
            through it always is.

    Raises:
        DrengineError: of the family CONVERSION_FAILED. Nothing is left behind, except what was written to the disks.
    """
    deadline = time.monotonic() + timeout_seconds
    with Helper(directory, name, disks, options, deadline, cancelled) as helper:
        progress("looking for the system")
        system = find_system(helper, wish.inventory)
        guest = Guest(helper, name, dry=wish.dry, again=again)
        guest.mount(system.mounts)
        progress(f"{'looking at' if wish.dry else 'converting'} {system.name}")
        kernels = _Conversion(guest, system, wish, progress).done()
        guest.unmount()
        changes, notes = guest.told()
        return Converted(
            system=system.name,
            root=_place(system, helper),
            kernels=tuple(each.version for each in kernels),
            changes=changes,
            notes=notes,
            set_aside=BEFORE if changes else "",
        )


def _place(system: System, helper: Helper) -> str:
    root = system.root
    return f"{helper.disks[root.disk].volume} {root.number}".rstrip(" 0") if root.disk >= 0 else root.path


class _Conversion:
    """The steps, in the order in which they depend on each other."""

    def __init__(self, guest: Guest, system: System, wish: Wish, progress: Callable[[str], None]) -> None:
        self._guest = guest
        self._system = system
        self._wish = wish
        self._progress = progress

    def done(self) -> list[GuestKernel]:
        """Whatever can be known is known before the first change."""
        self._check_firmware()
        kernels = self._kernels()
        tool = self._tool()
        self._check_room(kernels)
        loaders = self._loaders() if self._wish.machine.firmware == "uefi" else []
        self._fstab()
        renamed = self._network()
        self._first_boot()
        self._console()
        self._initramfs(tool, kernels, anew=renamed or self._guest.unfinished)
        self._boot_loader()
        self._fallback(loaders)
        self._labels()
        self._guest.finished()
        return kernels

    def _check_firmware(self) -> None:
        wanted, esp = self._wish.machine.firmware, has_esp(self._system.devices)
        if wanted == "uefi" and not esp:
            raise DrengineError(WRONG_FIRMWARE, "the machine has UEFI, and no disk has an EFI system partition")
        if wanted == "bios" and esp and not self._boots_by_bios():
            raise DrengineError(WRONG_FIRMWARE, "the machine has BIOS, and the disks boot by UEFI only")

    def _boots_by_bios(self) -> bool:
        disks = [each.path for each in self._system.devices.all if each.disk >= 0 and not each.number]
        return self._guest.inside(" || ".join(_IS_GRUB.format(disk=disk) for disk in disks)).ok

    def _kernels(self) -> list[GuestKernel]:
        """The kernels that are installed.

        Raises:
            DrengineError: NO_BOOT, there are none, or none that could start there.
        """
        pattern = "|".join(DRIVERS).replace("_", "[-_]")
        script = f"""for dir in /lib/modules/*; do v=${{dir##*/}}
          [ -f $dir/modules.dep ] && [ -e /boot/vmlinuz-$v ] || continue
          echo "kernel $v"
          for f in /boot/initrd.img-$v /boot/initramfs-$v.img; do [ -s $f ] && echo "initramfs $f"; done
          grep -oE '^[^:]*/({pattern})\\.ko[^:]*' $dir/modules.dep | sed 's/^/module /'
          grep -E '/({pattern})\\.ko' $dir/modules.builtin | sed 's/^/builtin /'
        done; true"""
        found = list(map(_kernel, self._guest.inside(script).text.split("kernel ")[1:]))
        if not found:
            raise DrengineError(NO_BOOT, "/boot holds no kernel whose modules are in /lib/modules")
        machine = self._wish.machine
        for kernel in found:
            if kernel.cannot(machine):
                what = f"kernel {kernel.version} has no {', '.join(kernel.cannot(machine))}"
                self._guest.notes.append(f"{what}: it can't start there")
        if all(kernel.cannot(machine) for kernel in found):
            raise DrengineError(NO_BOOT, f"no kernel of the guest has a driver for disks on {machine.disk_bus}")
        return found

    def _tool(self) -> str:
        there = self._guest.there("/usr/sbin/update-initramfs", "/usr/bin/dracut", "/usr/sbin/dracut")
        if not there:
            raise DrengineError(NO_INITRAMFS_TOOL, f"{self._system.name} has neither update-initramfs nor dracut")
        return "initramfs-tools" if "/usr/sbin/update-initramfs" in there else "dracut"

    def _check_room(self, kernels: Sequence[GuestKernel]) -> None:
        files = " ".join(each.initramfs for each in kernels if each.initramfs)
        script = f"df -kP / /boot | awk 'NR>1 {{print $4}}'; for f in {files}; do stat -c %s $f; done"
        numbers = [int(each) for each in self._guest.inside(script).text.split() if each.isdigit()]
        free, sizes = [each << 10 for each in numbers[:2]], numbers[2:]
        for place, room, need in zip(
            ("/", "/boot"), free, (ROOM_BYTES_MIN, max([0, *sizes]) + ROOM_BYTES_MIN), strict=False
        ):
            if room < need:
                raise DrengineError(
                    NO_ROOM, f"{place} has {room >> 20} MiB left, and a new initramfs takes up to {need >> 20}"
                )

    def _fstab(self) -> None:
        before = self._guest.files(_FSTAB, _RESUME)
        after, notes = convert_fstab(before.get(_FSTAB, ""), self._system.devices, self._system.root)
        self._guest.notes += notes
        self._guest.put("fstab", {_FSTAB: after}, before)

    def _network(self) -> bool:
        """Whether names of cards are given anew, which an initramfs has to know as well."""
        files, there = self._guest.files(*FILES), self._guest.there(*PROGRAMS)
        plan = plan_network(files, there, self._wish.cards, self._wish.machine, self._wish.inventory)
        self._guest.notes += plan.notes
        self._guest.set_aside("network", plan.aside, files)
        links = {path: text for path, text in plan.puts.items() if path.endswith(".link")}
        renamed = self._guest.put("network", links, files)
        others = {path: text for path, text in plan.puts.items() if path not in links}
        for private in (False, True):
            chosen = {path: text for path, text in others.items() if path.startswith(PRIVATE) is private}
            self._guest.put("network", chosen, files, mode="600" if private else "")
        return renamed

    def _first_boot(self) -> None:
        if self._wish.first_boot:
            before = self._guest.files(_SCRIPT, f"{_SCRIPT}.done", _UNIT)
            if before.get(f"{_SCRIPT}.done") != self._wish.first_boot:
                self._guest.put("first-boot", {_SCRIPT: self._wish.first_boot, _UNIT: _UNIT_TEXT}, before)
                self._link("first-boot", _UNIT_WANTED, _UNIT)

    def _console(self) -> None:
        console = self._wish.machine.console
        path = _GETTY.format(console=console)
        for unit in ("/lib/systemd/system/serial-getty@.service", "/usr/lib/systemd/system/serial-getty@.service"):
            if console and self._guest.there(unit):
                self._link("console", path, unit)
                return

    def _link(self, what: str, path: str, target: str) -> None:
        if not self._guest.there(path):
            script = f"mkdir -p {path.rpartition('/')[0]}; ln -sf {target} {path}"
            self._guest.do(what, path, script, after=f"-> {target}")

    def _initramfs(self, tool: str, kernels: Sequence[GuestKernel], *, anew: bool) -> None:
        """Every kernel's initramfs holds the drivers; what the guest's tool made is looked at."""
        kernels = [self._with_content(tool, each) for each in kernels]
        if tool == "dracut":
            before = self._guest.files("/etc/dracut.conf.d/*")
            files = dracut_files(kernels)
            if not any(each.missing() for each in kernels):
                files = {path: before[path] for path in files if path in before}
        else:
            before = self._guest.files(
                "/etc/initramfs-tools/*.conf", "/etc/initramfs-tools/modules", "/etc/initramfs-tools/conf.d/*"
            )
            files = initramfs_tools_files(before, kernels)
        told = self._guest.put("initramfs", files, before)
        for kernel in kernels:
            missing = kernel.missing()
            if not (missing or told or anew):
                continue
            self._progress(f"initramfs of {kernel.version}")
            file = initramfs_file(tool, kernel)
            after = f"with {', '.join(missing)}" if missing else "made anew"
            self._guest.program("initramfs", file, rebuild_command(tool, kernel), after=after)
            made = replace(kernel, initramfs=file)
            still = () if self._wish.dry else self._with_content(tool, made).missing()
            if still:
                raise DrengineError(CONVERSION_FAILED, f"{file} was made anew, and still lacks {', '.join(still)}")

    def _with_content(self, tool: str, kernel: GuestKernel) -> GuestKernel:
        if not kernel.initramfs:
            return kernel
        lister = "lsinitrd" if tool == "dracut" else "lsinitramfs"
        answer = self._guest.asked([lister, kernel.initramfs], into="grep -oE '[^ ]*/kernel/[^ ]*\\.ko[.a-z]*$'")
        held = tuple(line for line in answer.text.splitlines() if re.fullmatch(r"[\w./+-]{1,200}", line))
        return replace(kernel, held=held)

    def _boot_loader(self) -> None:
        """GRUB's own program writes its file; lines that name hardware in spite of that are mended in the text."""
        devices, console = self._system.devices, self._wish.machine.console
        before = self._guest.files(_GRUB, *_GRUB_FILES, *_ENTRIES, *_MAP)
        if _GRUB in before:
            self._guest.put(
                "kernel-command-line", {_GRUB: convert_grub_defaults(before[_GRUB], devices, console)}, before
            )
        self._guest.set_aside("boot-loader", [path for path in _MAP if path in before], before)
        there = self._guest.there("/usr/sbin/update-grub", "/usr/sbin/grub2-mkconfig", "/usr/sbin/grub-mkconfig")
        for path in _GRUB_FILES:
            if path not in before:
                continue
            text = before[path]
            if f"console={console}" not in text or names_hardware(text):
                made = self._make_grub(path, there)
                if made and self._wish.dry:
                    continue  # what it would write is not known
                text = self._guest.files(path).get(path, text)
            self._mend_entries({path: text})
        self._mend_entries({path: text for path, text in before.items() if path not in (_GRUB, *_GRUB_FILES, *_MAP)})
        if not before.keys() & set(_GRUB_FILES):
            self._guest.notes.append(
                "no GRUB configuration was found: what the boot loader tells the kernel was not changed"
            )

    def _labels(self) -> None:
        """Under SELinux a file without its label can't be read by those who need it."""
        settings = self._guest.files(_SELINUX).get(_SELINUX, "")
        on = re.search(r"^SELINUX=(enforcing|permissive)", settings, re.MULTILINE)
        policy = re.search(r"^SELINUXTYPE=([\w-]+)", settings, re.MULTILINE)
        if not on or self._wish.dry or not (self._guest.changes or self._guest.unfinished):
            return
        paths = self._guest.there(KEPT, *(each.path for each in self._guest.changes))
        contexts = f"/etc/selinux/{policy[1] if policy else 'targeted'}/contexts/files/file_contexts"
        labelled = not self._guest.unfinished and self._guest.asked(["setfiles", "-F", contexts, *sorted(paths)]).ok
        if not labelled:
            self._guest.do("labels", _RELABEL, f": > {_RELABEL}", after="all files are labelled at the first start")

    def _make_grub(self, path: str, there: frozenset[str]) -> bool:
        """Whether the guest has a program that makes it."""
        program = next((each for each in ("grub2-mkconfig", "grub-mkconfig") if f"/usr/sbin/{each}" in there), "")
        if program:
            self._progress("boot loader")
            self._guest.program(
                "boot-loader", path, [program, "-o", path], after="made anew: root by UUID, serial console"
            )
        return bool(program)

    def _mend_entries(self, files: dict[str, str]) -> None:
        devices, console = self._system.devices, self._wish.machine.console
        changed = {path: convert_entries(text, devices, console) for path, text in files.items()}
        self._guest.put("kernel-command-line", changed, files)

    def _loaders(self) -> list[str]:
        """What a machine with UEFI would start if it only knew: the files to copy to EFI/BOOT; none: it has its own.

        Raises:
            DrengineError: NO_BOOT.
        """
        if not self._system.esp:
            raise DrengineError(NO_BOOT, "the machine has UEFI, and the guest mounts no EFI system partition")
        place = f"{self._system.esp}/EFI"
        script = f'for f in {place}/*/*; do [ -f "$f" ] && echo "$f"; done; true'
        files = [line for line in self._guest.inside(script).text.splitlines() if re.fullmatch(r"[\w./-]{1,200}", line)]
        if any(each.lower() == f"{place}/boot/bootx64.efi".lower() for each in files):
            return []
        known = {each.rpartition("/")[2].lower(): each for each in files}
        if not (found := [known[name] for name in _LOADERS if name in known]):
            raise DrengineError(NO_BOOT, f"{place} holds no boot loader that could be started without UEFI's variables")
        return found

    def _fallback(self, loaders: Sequence[str]) -> None:
        """UEFI's variables stay with the old machine's board: without them it starts EFI/BOOT/BOOTX64.EFI."""
        if not loaders:
            return
        place = f"{self._system.esp}/EFI/BOOT"
        new = f"{place}/BOOTX64.EFI"
        copies = [f"cp {loaders[0]} {new}.new"]
        copies += [f"cp {each} {place}/{each.rpartition('/')[2]}" for each in loaders[1:]]
        script = f"set -e; mkdir -p {place}; {'; '.join(copies)}; sync; mv {new}.new {new}"
        self._guest.do("boot-loader", new, script, after=f"a copy of {', '.join(loaders)}")


def _kernel(text: str) -> GuestKernel:
    lines = text.splitlines()
    said = [line.partition(" ")[::2] for line in lines[1:]]
    builtin = frozenset(module_name(path) for kind, path in said if kind == "builtin")
    modules = frozenset(module_name(path) for kind, path in said if kind == "module")
    images = [path for kind, path in said if kind == "initramfs" and re.fullmatch(r"[\w./+~-]{1,200}", path)]
    return GuestKernel(lines[0], images[0] if images else "", modules, builtin)
