"""The recovery commands as a person or a script calls them: only the store's directory is needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from drengine.cli.main import app
from drengine.model.points import PointKind
from drengine.nbd.client import NbdClient
from drengine.store.store import Store
from drengine.terminal import main
from tests.recovery.replica import SIZE, make

pytestmark = pytest.mark.timeout(60)
Run = subprocess.CompletedProcess[str]


class Shell:
    """Runs commands in this process, which is as a process of its own would, only quicker."""

    def __init__(self, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.store = store
        self._capsys = capsys

    def __call__(self, *arguments: str, exit_code: int = 0) -> str:
        self._capsys.readouterr()
        found = main(app, [*arguments, *(() if "--store" in arguments else ("--store", str(self.store)))])
        captured = self._capsys.readouterr()
        assert found == exit_code, captured.err
        assert "Traceback" not in captured.err
        self.said = captured.err
        return captured.out


@pytest.fixture
def contents(tmp_path: Path) -> dict[str, bytes]:
    return make(tmp_path / "store")


@pytest.fixture
def shell(tmp_path: Path, contents: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path / "store", capsys)


def test_points_as_a_table_and_as_json(shell: Shell, contents: dict[str, bytes]) -> None:
    table = shell("points")
    assert all(point_id in table for point_id in contents)
    listed = json.loads(shell("points", "--json"))
    assert [each["id"] for each in listed] == list(contents)
    assert {"time", "kind", "damaged", "size_bytes", "lag_seconds", "pinned", "volumes"} <= set(listed[0])
    assert listed[0]["volumes"][0]["size_bytes"] == SIZE


def test_every_time_that_is_shown_finds_its_point(shell: Shell, contents: dict[str, bytes]) -> None:
    shown = {line.split()[0]: " ".join(line.split()[1:3]) for line in shell("points").splitlines()[1:]}
    exact = {each["id"]: each["time"] for each in json.loads(shell("points", "--json"))}
    assert list(shown) == list(exact) == list(contents)
    for times in (shown, exact):
        for point, time in times.items():
            assert json.loads(shell("pin", f"before:{time}", "--json"))["id"] == point
            assert json.loads(shell("verify", time, "--json"))["id"] == point


def test_a_label_is_taken_wherever_a_point_is_named(shell: Shell, contents: dict[str, bytes]) -> None:
    older = next(iter(contents))
    for text in ("cut 0", "label:cut 0"):
        for command in ("verify", "pin", "unpin"):
            assert json.loads(shell(command, text, "--json"))["id"] == older
    shell("restore", "cut 0", "--to", f"data={shell.store.parent / 'disk.img'}")
    assert (shell.store.parent / "disk.img").read_bytes() == contents[older]


@pytest.mark.parametrize("label", ["20261125", "latest", "1-5"])
def test_an_old_label_that_reads_as_something_else_is_named_as_one(shell: Shell, label: str) -> None:
    with Store.open(shell.store) as store:
        branch = store.promote(store.points("shop")[0], expected_generation=1)
        with store.writable("shop", branch.number, generation=2) as view:
            view.write(1, 0, b"x" * 512)
            kept = view.cut(PointKind.WRITE_ORDER, label)
    assert json.loads(shell("verify", f"label:{label}", "--json"))["id"] == kept.id


def test_status_tells_what_the_store_holds(shell: Shell, contents: dict[str, bytes]) -> None:
    told = json.loads(shell("status", "--json"))
    (source,) = told["sources"]
    assert source["source"] == "shop" and source["points"] == 2 and source["points_damaged"] == 0
    assert source["newest_point"] == list(contents)[-1]
    assert source["being_written"] is False
    assert told["free_bytes"] > 0 and told["stored_bytes"] > 0
    with Store.open(shell.store) as store:
        writer = store.writer("shop", generation=1)
        assert json.loads(shell("status", "--json"))["sources"][0]["being_written"] is True
        writer.close()
    assert "shop" in shell("status")


def test_pin_and_unpin(shell: Shell) -> None:
    assert json.loads(shell("pin", "latest", "--note", "before the upgrade", "--json"))["pinned"] is True
    assert [each["pinned"] for each in json.loads(shell("points", "--json"))] == [False, True]
    shell("unpin", "latest")
    assert not any(each["pinned"] for each in json.loads(shell("points", "--json")))


def test_verify_and_scrub_find_nothing_in_a_whole_store(shell: Shell) -> None:
    assert json.loads(shell("verify", "latest", "--json"))["intact"] is True
    assert json.loads(shell("scrub", "--json"))["records_damaged"] == []
    assert json.loads(shell("points", "--json"))[-1]["verified_ns"] > 0


@pytest.mark.fault(2)
def test_verify_scrub_and_restore_fail_loudly_on_damage(shell: Shell, contents: dict[str, bytes]) -> None:
    segment = next(shell.store.rglob("*.seg"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    shell("verify", "latest", exit_code=43)
    assert json.loads(shell("scrub", "--json", exit_code=43))["records_damaged"]
    damaged = [each["id"] for each in json.loads(shell("points", "--json")) if each["damaged"]]
    target = shell.store.parent / "disk.img"
    shell("restore", damaged[-1], "--to", f"data={target}", exit_code=43)
    assert not target.exists()
    if damaged == list(contents):
        shell("restore", "latest", "--to", f"data={target}", exit_code=41)
    else:  # `latest` passes over points that can't be read
        shell("restore", "latest", "--to", f"data={target}")
        assert target.read_bytes() == next(iter(contents.values()))
    assert json.loads(shell("status", "--json"))["sources"][0]["points_damaged"] > 0


@pytest.mark.fault(3)
def test_rebuild_brings_back_a_store_whose_catalogue_is_lost(shell: Shell, contents: dict[str, bytes]) -> None:
    for file in shell.store.glob("catalogue.sqlite*"):
        file.unlink()
    shell("points", exit_code=33)
    report = json.loads(shell("rebuild", "--json"))
    assert report["points"] == 2
    assert [each["id"] for each in json.loads(shell("points", "--json"))] == list(contents)
    shell("restore", "latest", "--to", f"data={shell.store.parent / 'disk.img'}")
    assert (shell.store.parent / "disk.img").read_bytes() == list(contents.values())[-1]


def test_restore_by_time_and_into_a_folder(shell: Shell, contents: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    told = shell("restore", "before:2100-01-01T00:00:00Z", "--to", str(tmp_path / "out"))
    assert "completed" in told and "read back and equal" in told
    assert (tmp_path / "out" / "data.img").read_bytes() == list(contents.values())[-1]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "id"),
    [
        (("points", "--store", "/nowhere"), 30, "not-a-store"),
        (("points", "--source", "nope"), 40, "unknown-source"),
        (("points", "--source", "../etc"), 40, "unknown-source"),
        (("verify", "1-999999"), 41, "unknown-point"),
        (("verify", "yesterday"), 41, "unknown-point"),
        (("verify", ""), 11, "bad-point"),
        (("restore", "label:", "--to", "data=/tmp/x"), 11, "bad-point"),
        (("verify", "before:yesterday"), 11, "bad-point"),
        (("verify", "before:1970-01-01"), 41, "unknown-point"),
        (("pin", "../../etc/passwd"), 41, "unknown-point"),
        (("export", "--branch", "7"), 42, "unknown-branch"),
        (("export", "--volume", "nope"), 44, "unknown-volume"),
        (("export", "--listen", "10.1.2.3:1"), 21, "plain-refused"),
        (("export", "--listen", "everywhere"), 50, "bad-config"),
        (("export", "--socket", "/proc/nope/sock"), 28, "nbd-listen"),
        (("branches", "--drop", "9"), 42, "unknown-branch"),
        (("restore", "latest", "--to", "nope=/tmp/x"), 69, "bad-destination"),
        (("restore", "latest", "--to", "/nowhere/at/all"), 69, "bad-destination"),
        (("restore", "latest", "--to", "data=/dev/null"), 63, "destination-refused"),
        (("restore", "latest"), 2, "usage"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_is_one_line_with_an_id_and_changes_nothing(
    shell: Shell, arguments: tuple[str, ...], exit_code: int, id: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in shell.store.rglob("*.seg")}
    shell(*arguments, exit_code=exit_code)
    error, hint = shell.said.strip().splitlines()[-2:]
    assert f"[{id}]" in error and hint.startswith("hint:")
    assert {path: path.stat().st_mtime_ns for path in shell.store.rglob("*.seg")} == before


def test_several_sources_need_a_name(shell: Shell, contents: dict[str, bytes]) -> None:
    make(shell.store, seed=2, source="bank")
    shell("points", exit_code=62)
    assert "bank, shop" in shell.said
    assert len(json.loads(shell("points", "--source", "bank", "--json"))) == 2


class Export:
    """`drengine export --json` in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "drengine.cli.main", "export", "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        self.told = json.loads(line)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=20)
        return self.process.returncode


@pytest.fixture
def exporting(tmp_path: Path) -> Iterator[list[Export]]:
    running: list[Export] = []
    yield running
    for each in running:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_export_serves_a_point_at_once_and_ends_on_a_signal(
    tmp_path: Path, contents: dict[str, bytes], exporting: list[Export], number: int
) -> None:
    older = next(iter(contents))
    socket = tmp_path / "nbd.sock"
    export = Export(older, "--store", str(tmp_path / "store"), "--socket", str(socket))
    exporting.append(export)
    assert export.told["point"] == older and export.told["writable"] is False
    assert export.told["volumes"] == [{"name": "data", "size_bytes": SIZE, "sector_bytes": 512}]
    with NbdClient(str(socket), "") as client:
        assert bytes(client.read(0, SIZE)) == contents[older]
    assert export.end(number) == 0
    assert not socket.exists()
    assert not list((tmp_path / "store").rglob("lease-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_writable_export_leaves_no_socket_and_no_writer_behind(
    tmp_path: Path, contents: dict[str, bytes], exporting: list[Export], number: int
) -> None:
    export = Export("--writable", "--store", str(tmp_path / "store"))
    exporting.append(export)
    socket = Path(parse_qs(urlsplit(export.told["uris"][0]).query)["socket"][0])
    with NbdClient(str(socket), export.told["exports"][0]) as client:
        client.write(0, b"written" * 100)
    assert export.end(number) == 0
    assert not socket.parent.exists()
    assert not list((tmp_path / "store").rglob("lease-*"))
    with Store.open(tmp_path / "store") as store, store.head_view("shop", export.told["branch"]) as view:
        assert view.read(1, 0, 700) == b"written" * 100, "what was written is durable at the end"


def test_a_writable_export_is_a_branch_that_outlives_it(
    tmp_path: Path, contents: dict[str, bytes], shell: Shell, exporting: list[Export]
) -> None:
    newest = list(contents)[-1]
    first = Export("--writable", "--store", str(tmp_path / "store"), "--listen", "127.0.0.1:0")
    exporting.append(first)
    branch = first.told["branch"]
    host, _, port = first.told["uris"][0].removeprefix("nbd://").partition("/")[0].partition(":")
    with NbdClient((host, int(port)), first.told["exports"][0]) as client:
        client.write(SIZE - 512, b"tail" * 128)
        client.flush()
    assert first.end() == 0
    socket = tmp_path / "nbd.sock"
    again = Export("--branch", str(branch), "--store", str(tmp_path / "store"), "--socket", str(socket))
    exporting.append(again)
    with NbdClient(str(socket), again.told["exports"][0]) as client:
        assert client.read(SIZE - 512, 512) == b"tail" * 128
        assert bytes(client.read(0, SIZE - 512)) == contents[newest][:-512]
    os.kill(again.process.pid, signal.SIGKILL)
    again.process.communicate()
    shell("restore", newest, "--to", f"data={tmp_path / 'disk.img'}")
    assert (tmp_path / "disk.img").read_bytes() == contents[newest]
    shell("branches", "--drop", str(branch))
    assert [each["closed"] for each in json.loads(shell("branches", "--json"))] == [False, True]


@pytest.mark.fault(18)
def test_reading_commands_work_on_a_store_that_must_not_be_written(shell: Shell, contents: dict[str, bytes]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everything; run the tests unprivileged to see this one")
    folders = [shell.store, *(path for path in shell.store.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        assert len(json.loads(shell("points", "--json"))) == 2
        shell("status")
        shell("pin", "latest", exit_code=36)
    finally:
        for path in folders:
            path.chmod(0o755)
