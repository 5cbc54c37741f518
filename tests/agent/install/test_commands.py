"""`install`, `upgrade`, `uninstall`, `track`, `untrack` and `status` as a person types them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine.terminal import main
from drengine_agent.cli.main import commands
from drengine_agent.config import load_config
from drengine_agent.install.places import CONFIG, UNIT, within

ROOT = Path(__file__).parents[3]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loop devices, BPF")
Capture = pytest.CaptureFixture[str]
GO_ON = (b"Go on?", b"\n")
WISHES = ["--source", "shop", "--target", "127.0.0.1:7440", "--volume", "data=/dev/vdb"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    root = tmp_path / "image"
    for name in ("usr/lib/systemd", "usr/local", "var/lib", "etc/systemd/system"):
        (root / name).mkdir(parents=True)
    (root / "usr/lib/systemd/systemd").write_text("")
    return root


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "disk"
    file.write_bytes(bytes(8 << 20))
    made = subprocess.run(["losetup", "--find", "--show", file], capture_output=True, text=True, check=True)
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_an_image_gets_a_configuration_that_the_agent_reads(image: Path, capsys: Capture) -> None:
    assert main(commands, ["install", *WISHES, "--root", str(image), "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["done"]
    assert any(line.endswith(str(UNIT)) or str(UNIT) in line for line in told["acts"])
    config = load_config(within(image, CONFIG))
    assert (config.source, config.tracker, [volume.path for volume in config.volume]) == (
        "shop",
        "ebpf",
        [Path("/dev/vdb")],
    )
    assert main(commands, ["install", "--root", str(image), "--yes"]) == 0
    assert main(commands, ["uninstall", "--root", str(image), "--yes"]) == 0
    assert not within(image, CONFIG).exists()


def test_a_dry_run_shows_and_does_nothing(image: Path, capsys: Capture) -> None:
    before = sorted(image.rglob("*"))
    assert main(commands, ["install", *WISHES, "--root", str(image), "--dry-run"]) == 0
    assert f"write   {CONFIG}" in capsys.readouterr().out
    assert sorted(image.rglob("*")) == before


def test_other_wishes_for_a_changed_configuration_are_refused(image: Path, capsys: Capture) -> None:
    main(commands, ["install", *WISHES, "--root", str(image), "--yes"])
    path = within(image, CONFIG)
    path.write_text("workers = 1\n" + path.read_text())
    edited = path.read_text()
    capsys.readouterr()
    assert main(commands, ["install", *WISHES, "--root", str(image), "--yes"]) == 0, "it says all that already"
    assert main(commands, ["install", "--metrics", "127.0.0.1:9441", "--root", str(image), "--yes"]) == 91
    assert "[install-conflict]" in capsys.readouterr().err
    assert path.read_text() == edited
    assert main(commands, ["install", "--root", str(image), "--yes"]) == 0
    assert path.read_text() == edited


def test_a_later_run_changes_what_it_names_and_leaves_the_rest(image: Path, capsys: Capture) -> None:
    typed = ["install", "--root", str(image), "--yes", "--json"]
    site = ["--data-network", "192.0.2.0/24", "--data-network", "2001:db8::/64", "--cuts", "quiet"]
    assert main(commands, [*typed, *WISHES, *site]) == 0
    first = within(image, CONFIG).read_bytes()
    capsys.readouterr()
    assert main(commands, [*typed, *WISHES, *site]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] is False
    assert within(image, CONFIG).read_bytes() == first
    assert main(commands, [*typed, "--metrics", "127.0.0.1:9441", "--bandwidth", "20MiB/s"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] is True
    config = load_config(within(image, CONFIG))
    assert (config.source, config.data_networks, config.cuts.kinds, config.bandwidth, str(config.metrics)) == (
        "shop",
        ("192.0.2.0/24", "2001:db8::/64"),
        "quiet",
        "20MiB/s",
        "127.0.0.1:9441",
    )


def test_certificates_serve_for_the_broker_too(image: Path) -> None:
    files = [word for name in ("certificate", "key", "ca") for word in (f"--{name}", f"/etc/drengine/{name}.pem")]
    typed = ["install", *WISHES, *files, "--broker", "broker.example:8883", "--site", "north", "--yes"]
    assert main(commands, [*typed, "--root", str(image)]) == 0
    config = load_config(within(image, CONFIG))
    assert (str(config.control.address), config.control.site) == ("broker.example:8883", "north")
    assert config.control.tls_files() == config.tls.files() is not None


def test_an_upgrade_of_nothing_is_refused(image: Path, capsys: Capture) -> None:
    assert main(commands, ["upgrade", "--root", str(image), "--yes"]) == 91
    assert "Install it first" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wishes",
    [
        ["--source", "../etc", "--target", "127.0.0.1:1", "--volume", "a=/dev/x"],
        ["--source", "shop", "--target", "nonsense", "--volume", "a=/dev/x"],
        ["--source", "shop", "--target", "127.0.0.1:1", "--volume", "a/b=/dev/x"],
        ["--source", "shop", "--target", "127.0.0.1:1", "--volume", "a"],
        ["--source", "shop", "--target", "127.0.0.1:1", "--volume", "a=/x", "--volume", "a=/y"],
        ["--source", "shop", "--target", "127.0.0.1:1", "--volume", "a=/x", "--tracker", "magic"],
        ["--source", "shop", "--target", "127.0.0.1:1", "--volume", "a=/x", "--key", "/k"],
        ["--source", "shop"],
    ],
)
def test_wishes_that_make_no_sense_change_nothing(wishes: list[str], image: Path, capsys: Capture) -> None:
    before = sorted(image.rglob("*"))
    code = main(commands, ["install", *wishes, "--root", str(image), "--yes"])
    told = capsys.readouterr().err
    assert code in (2, 10, 50), told
    assert len(told.splitlines()) == 2, told
    assert sorted(image.rglob("*")) == before


@needs_root
def test_what_the_doctor_refuses_is_not_installed(tmp_path: Path, capsys: Capture) -> None:
    words = ["--source", "shop", "--target", "127.0.0.1:1", "--volume", f"a={tmp_path / 'none'}", "--dry-run"]
    assert main(commands, ["install", *words]) == 90
    told = capsys.readouterr()
    assert "nothing was installed" in told.err
    assert "No such file" in told.out
    assert main(commands, ["install", *words, "--json"]) == 90
    assert json.loads(capsys.readouterr().out)["done"] is False


@pytest.mark.skipif(os.geteuid() == 0, reason="root may install")
def test_without_root_nothing_is_tried(capsys: Capture) -> None:
    assert main(commands, ["install", *WISHES, "--yes"]) == 92
    assert "root is needed" in capsys.readouterr().err


def answered(image: Path, *answers: tuple[bytes, bytes]) -> None:
    """`install` at a terminal, where each question that comes gets its answer."""
    mine, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'agents'}", "TERM": "dumb", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "drengine_agent", "install", "--root", str(image)]
    said, left = b"", list(answers)
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        try:
            while chunk := os.read(mine, 4096):
                said += chunk
                if left and left[0][0] in said:
                    os.write(mine, left.pop(0)[1])
        except OSError:
            pass  # the other end has closed
        assert process.wait(60) == 0, said
    os.close(mine)
    assert left == []


def test_a_person_at_the_terminal_is_asked(image: Path) -> None:
    answered(
        image, (b"name", b"shop\n"), (b"HOST:PORT", b"127.0.0.1:7440\n"), (b"NAME=PATH", b"data=/dev/vdb\n"), GO_ON
    )
    assert load_config(within(image, CONFIG)).source == "shop"


def test_beyond_loopback_the_person_is_asked_for_all_that_a_session_needs(image: Path) -> None:
    answered(
        image,
        (b"name", b"shop\n"),
        (b"target's HOST:PORT", b"192.0.2.7:7440\n"),
        (b"NAME=PATH", b"data=/dev/vdb\n"),
        (b"[192.0.2.7/32]", b"\n"),
        (b"PEM file: certificate", b"/etc/c.pem\n"),
        (b"PEM file: key", b"/etc/k.pem\n"),
        (b"PEM file: ca", b"/etc/ca.pem\n"),
        (b"broker's HOST:PORT", b"192.0.2.7:8883\n"),
        (b"Prometheus", b"\n"),
        (b"Cuts", b"quiet\n"),
        GO_ON,
    )
    config = load_config(within(image, CONFIG))
    assert (config.data_networks, str(config.control.address), config.metrics, config.cuts.kinds) == (
        ("192.0.2.7/32",),
        "192.0.2.7:8883",
        None,
        "quiet",
    )
    assert config.tls.ca == config.control.ca == Path("/etc/ca.pem")


@needs_root
def test_the_kernel_tracks_without_an_agent_until_it_is_told_not_to(
    loop: Path, tmp_path: Path, capsys: Capture
) -> None:
    config = tmp_path / "agent.toml"
    source = f"track-{os.getpid()}"
    words = ["--source", source, "--target", "127.0.0.1:1", "--volume", f"data={loop}", "--tracker", "ebpf"]
    main(commands, ["protect", *words, "--config", str(config), "--state-directory", "/dev/shm/none"])
    where = ["--config", str(config)]
    try:
        assert main(commands, ["track", *where, "--json"]) == 0
        first = json.loads(capsys.readouterr().out)
        assert (first["adopted"], first["reason"]) == (False, "untracked")
        subprocess.run(
            ["dd", "if=/dev/urandom", f"of={loop}", "bs=4096", "count=3", "oflag=direct"], check=True, stderr=-3
        )
        assert main(commands, ["track", *where, "--json"]) == 0
        again = json.loads(capsys.readouterr().out)
        assert again["adopted"]
        assert again["tracking"]["epoch"] == first["tracking"]["epoch"]
        assert again["tracking"]["active_blocks"] == 3
        assert main(commands, ["status", *where, "--json"]) == 83
        seen = json.loads(capsys.readouterr().out)
        assert (seen["running"], seen["tracking"]["active_blocks"]) == (False, 3)
        assert main(commands, ["status", *where]) == 83
        assert "12.0 KiB" in capsys.readouterr().out
    finally:
        assert main(commands, ["untrack", *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"]
    assert main(commands, ["untrack", *where, "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["removed"]
    assert main(commands, ["status", *where, "--json"]) == 83
    assert json.loads(capsys.readouterr().out)["tracking"] is None
