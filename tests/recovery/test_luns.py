"""`drengine export --iscsi`: points and branches as LUNs, and nothing left of them however it ends."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from benchmarks.devices import until
from drengine.cli.main import app
from drengine.iscsi.serving import FILE_MARK, MARK
from drengine.linux.mounts import read_mounts
from drengine.process import find_marked
from drengine.store.store import Store
from drengine.terminal import main
from tests.iscsi.rig import Initiator, skip_unless_iscsi_can_be_served
from tests.recovery.replica import make
from tests.recovery.test_commands import Export

pytestmark = pytest.mark.timeout(60)
SECRET = "a-secret-of-some-length"


@contextmanager
def exported(store: Path, *arguments: str) -> Iterator[Export]:
    skip_unless_iscsi_can_be_served()
    export = Export(*arguments, "--store", str(store), "--iscsi", "127.0.0.1")
    try:
        yield export
    finally:
        if export.process.poll() is None:
            export.process.kill()
            export.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_branch_is_a_lun_whose_flushed_writes_outlive_everything(tmp_path: Path, number: int) -> None:
    make(tmp_path / "store")
    with exported(tmp_path / "store", "--writable") as export:
        name, told = f"export-{export.process.pid}", export.told["iscsi"]
        Initiator(told["portal"], told["target"]).does("write -P 9 0 64k", "flush")
        processes = find_marked(MARK, name) + find_marked(FILE_MARK, f"{name}/data")
        assert len(processes) == 2
        export.process.send_signal(number)
        export.process.communicate(timeout=20)
        until(lambda: not any(Path(f"/proc/{each}").exists() for each in processes), "its processes end")
    folder = Path(parse_qs(urlsplit(export.told["uris"][0]).query)["socket"][0]).parent
    until(lambda: not any(each.at.is_relative_to(folder) for each in read_mounts()), "its mounts end")
    shutil.rmtree(folder, ignore_errors=True)
    with Store.open(tmp_path / "store") as store, store.head_view("shop", export.told["branch"]) as view:
        assert view.read(1, 0, 64 << 10) == bytes([9]) * (64 << 10)


def test_a_point_is_a_lun_that_only_who_has_the_secret_reads_and_nobody_writes(tmp_path: Path) -> None:
    make(tmp_path / "store")
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    with exported(tmp_path / "store", "--chap-user", "shop", "--chap-secret", str(tmp_path / "secret")) as export:
        told = export.told["iscsi"]
        client = Initiator(told["portal"], told["target"], user="shop", secret=SECRET)
        client.does("read 0 64k", flags=("-r",))
        assert client.io("write 0 4k").returncode != 0
        assert replace(client, user="").io("read 0 4k", flags=("-r",)).returncode != 0
        assert export.end() == 0


@pytest.mark.parametrize(
    ("options", "id"),
    [
        (("192.0.2.1",), "outside-data-network"),
        (("192.0.2.1", "--data-network", "192.0.2.0/24"), "iscsi-settings"),
        (("outpost",), "iscsi-settings"),
        (("127.0.0.1", "--data-network", "everywhere"), "iscsi-settings"),
        (("127.0.0.1", "--initiator", "me"), "iscsi-settings"),
        (("127.0.0.1", "--chap-user", "me"), "iscsi-settings"),
        (("127.0.0.1", "--chap-user", "me", "--chap-secret", "/no/such/file"), "iscsi-settings"),
    ],
)
def test_luns_that_would_be_open_to_others_are_refused_before_anything_is_made(
    tmp_path: Path, options: tuple[str, ...], id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "store")
    assert main(app, ["export", "--writable", "--store", str(tmp_path / "store"), "--iscsi", *options]) != 0
    assert f"[{id}]" in capsys.readouterr().err
    with Store.open(tmp_path / "store") as store:
        assert len(store.branches("shop")) == 1
