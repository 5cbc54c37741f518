"""A machine's console is kept in a file that stays small, however much its guest says."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.devices import until
from drengine.failover.drivers.qemu import console as module
from drengine.failover.drivers.qemu.console import CONSOLE, MARK, console_kept, end_console, has_said, keep
from drengine.failover.drivers.qemu.driver import QemuDriver
from drengine.process import find_marked
from tests.failover.drivers.qemu.guests import bios_disk
from tests.failover.drivers.qemu.served import served
from tests.failover.drivers.qemu.test_boot import request

BYTES_MAX = 64 << 10
SAYS_AGAIN = "e9e6ff"
"""A boot sector's jump back to where it begins to speak."""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="dr-console-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def size(folder: Path) -> int:
    return (folder / CONSOLE).stat().st_size


def test_the_words_that_are_waited_for_are_found_however_much_follows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BYTES_MAX", BYTES_MAX)
    instance = f"console-{secrets.token_hex(4)}"
    with console_kept(instance, folder, "login:") as descriptor:
        os.write(descriptor, b"Debian 12 login: ")
        assert until(lambda: has_said(folder, "login:"), "its words")
        for number in range(10 * BYTES_MAX // 1024):
            os.write(descriptor, f"{number} ".encode().ljust(1024, b"."))
            assert not (folder / CONSOLE).exists() or size(folder) <= BYTES_MAX
        os.write(descriptor, b"last words")
    end_console(instance, folder)
    assert not find_marked(MARK, instance)
    assert (folder / CONSOLE).read_bytes().endswith(b"last words") and size(folder) >= BYTES_MAX // 2
    assert b"login:" not in (folder / CONSOLE).read_bytes()
    assert has_said(folder, "login:"), "also after what said it was dropped"
    with console_kept(instance, folder, "login:"):
        assert not has_said(folder, "login:"), "the next machine has not said it"
    end_console(instance, folder)


@pytest.mark.parametrize("words", ["login:", ""])
def test_words_that_were_never_said_are_never_found(folder: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    reading, writing = os.pipe()
    for _ in range(40):
        os.write(writing, b"log" + b"x" * 1000)
    os.close(writing)
    keep(reading, 4096, words or "in:")
    os.close(reading)
    assert size(folder) <= 4096 and not has_said(folder, "login:")


@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="qemu-system-x86 is not installed")
def test_a_guest_that_never_stops_talking_goes_on_and_its_file_stays_small(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BYTES_MAX", BYTES_MAX)
    bios_disk(folder / "disk.raw", "ON AND ON", then=SAYS_AGAIN)
    with served(folder / "disk.sock", {"root": folder / "disk.raw"}) as disks:
        wanted = request(folder, disks, ready="ON AND ON")
        try:
            QemuDriver().launch(wanted, lambda _: None)
            assert until(replaced(wanted.directory / CONSOLE, times=3), "a new file")
            assert size(wanted.directory) <= BYTES_MAX
            (reader,) = find_marked(MARK, wanted.instance, wanted.directory)
            os.kill(reader, signal.SIGKILL)
            found = QemuDriver().inspect(replace(wanted, timeout_seconds=5.0))
            assert found.running and found.healthy, "a machine does not need who reads its words"
        finally:
            QemuDriver().stop(wanted)
    assert not find_marked(MARK, wanted.instance)


def replaced(file: Path, times: int) -> Callable[[], bool]:
    """Whether a file was replaced so often since this was made."""
    seen = [file.stat().st_ino]

    def look() -> bool:
        seen.extend({file.stat().st_ino} - {seen[-1]})
        return len(seen) > times

    return look
