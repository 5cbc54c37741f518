"""The one file: it starts with nothing beside it, refuses clearly what it can't, and unpacks once and safely."""

from __future__ import annotations

import ast
import asyncio
import fcntl
import json
import os
import re
import resource
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drengine.model.errors import ErrorKind
from drengine_agent.install.errors import CACHE_UNUSABLE, ONE_FILE_DAMAGED, PYTHON_UNSUPPORTED
from drengine_agent.install.places import CACHE
from tests.agent.install.onefile import build_here
from tests.enrolment.site import serving
from tools.onefile import ROOT, pack, requirements, without_sections

Answer = subprocess.CompletedProcess[str]
Start = Callable[..., Answer]
START = ROOT / "tools/onefile_start.py"


@pytest.fixture(autouse=True)
def machines_cache_is_left_as_it_was() -> Iterator[None]:
    """Where no folder that a test names can be used, the agent takes the machine's: it goes again."""
    was_there = CACHE.exists()
    yield
    if not was_there:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_here(tmp_path_factory.mktemp("onefile") / "drengine-agent")


@pytest.fixture
def start(agent: Path, tmp_path: Path) -> Start:
    """Start the file in an empty environment."""

    def run(*words: str, python: str = sys.executable, file: Path = agent, **environment: str) -> Answer:
        environment = {"DRENGINE_CACHE": str(tmp_path / "cache"), **environment}
        command = [python, "-IS", str(file), *words]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def test_it_runs_with_nothing_beside_it(start: Start) -> None:
    for words in (["--version"], ["doctor", "--help"], ["example-config"]):
        done = start(*words)
        assert (done.returncode, done.stderr) == (0, "")


def test_help_is_drawn_at_a_terminal(agent: Path, tmp_path: Path) -> None:
    import pty

    mine, theirs = pty.openpty()
    environment = {"DRENGINE_CACHE": str(tmp_path / "cache"), "TERM": "xterm-256color"}
    command = [sys.executable, "-IS", str(agent), "install", "--help"]
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        drawn = b""
        try:
            while chunk := os.read(mine, 1 << 16):
                drawn += chunk
        except OSError:
            pass  # the other end has closed
        assert process.wait(60) == 0
    os.close(mine)
    assert b"\x1b[" in drawn
    assert b"Installing twice" in drawn
    assert b"error" not in drawn


def test_every_module_of_the_agent_is_inside(start: Start, agent: Path, tmp_path: Path) -> None:
    assert start("--version").returncode == 0
    place = next((tmp_path / "cache").iterdir())
    program = (
        f"import sys, pkgutil, importlib; sys.path[:0] = [{str(place)!r}]; import drengine_agent as a\n"
        "names = [m.name for m in pkgutil.walk_packages(a.__path__, 'drengine_agent.') if '__main__' not in m.name]\n"
        "[importlib.import_module(n) for n in names]; print(len(names))"
    )
    done = subprocess.run(
        [sys.executable, "-ISc", program], capture_output=True, text=True, timeout=60, check=False, env={}
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


def test_it_is_unpacked_once_for_its_owner_alone(start: Start, tmp_path: Path) -> None:
    start("--version")
    (place,) = (tmp_path / "cache").iterdir()
    before = {path: path.stat().st_ino for path in place.rglob("*") if "__pycache__" not in path.parts}
    assert all(stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0 for path in [place.parent, place])
    start("--version")
    assert {path: path.stat().st_ino for path in place.rglob("*") if "__pycache__" not in path.parts} == before


def test_two_first_starts_at_once_both_run(agent: Path, tmp_path: Path) -> None:
    environment = {"DRENGINE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-IS", str(agent), "--version"]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    assert [each.wait(60) for each in both] == [0, 0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_other_versions_are_cleaned_away_unless_they_run(start: Start, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert start("--version").returncode == 0
    (made,) = cache.iterdir()
    for name in ("old", "running", ".unpacking-x", ".gone-y"):
        shutil.copytree(made, cache / name)
    shutil.rmtree(made)
    cache.chmod(0o700)
    held = os.open(cache / "running", os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert start("--version").returncode == 0
    finally:
        os.close(held)
    left = {path.name for path in cache.iterdir()}
    assert "running" in left
    assert not {"old", ".unpacking-x", ".gone-y"} & left
    assert len(left) == 2


def test_a_folder_that_is_in_use_for_other_things_keeps_all_of_them(start: Start, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "letters" / "2025").mkdir(parents=True)
    (cache / "letters" / "2025" / "ann").write_text("dear")
    for name in (".gone-letters", ".unpacking-x", "drengine", "0123abcd-cpython-311-x86_64-linux-gnu"):
        (cache / name / "drengine").mkdir(parents=True)
        (cache / name / ".contents").write_text("end\n")
    (cache / "posing").mkdir()
    (cache / "posing" / ".drengine-agent-unpacked").write_text("anything")
    (cache / "file").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (cache / "link").symlink_to(tmp_path / "elsewhere")
    cache.chmod(0o700)
    before = sorted(path for path in cache.rglob("*"))
    assert start("--version").returncode == 0
    (made,) = [path for path in cache.iterdir() if path not in before]
    shutil.copy(made / ".drengine-agent-unpacked", tmp_path / "elsewhere")  # by a link it is not ours
    shutil.rmtree(made)
    assert start("--version").returncode == 0
    assert [path for path in before if not os.path.lexists(path)] == []
    assert list((tmp_path / "elsewhere").iterdir()) != []


def test_a_cache_that_others_can_write_is_not_used(start: Start, tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    linked = tmp_path / "linked"
    linked.symlink_to(open_to_all)
    home = tmp_path / "home"
    for place in (open_to_all, linked):
        done = start("--version", DRENGINE_CACHE=str(place), CACHE_DIRECTORY=str(home), TMPDIR=str(tmp_path))
        assert done.returncode == 0
        assert list(open_to_all.iterdir()) == []
    assert len(list(home.iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_without_any_place_it_unpacks_for_this_run_only(start: Start, tmp_path: Path) -> None:
    tmp_path.joinpath("t").mkdir()
    done = start("--version", DRENGINE_CACHE="/proc/none", XDG_CACHE_HOME="/proc/none", TMPDIR=str(tmp_path / "t"))
    assert done.returncode == 0
    assert list((tmp_path / "t").iterdir()) == []


def other_pythons() -> list[str]:
    """Pythons that are too old, where there are any."""
    versions = Path("/root/.pyenv/versions")
    if not os.access(versions, os.R_OK | os.X_OK):
        return []
    return [str(path) for path in versions.glob("3.[6-9].*/bin/python3")]


def test_a_python_that_is_too_old_is_told_so(start: Start) -> None:
    olds = other_pythons()
    if not olds:
        pytest.skip("there is no older Python on this machine")
    for python in olds:
        done = start("doctor", python=python)
        assert done.returncode == PYTHON_UNSUPPORTED.exit_code, done.stderr
        assert len(done.stderr.splitlines()) == 2
        assert f"[{PYTHON_UNSUPPORTED.id}]" in done.stderr
        told = json.loads(start("doctor", "--json", python=python).stderr)
        assert (told["error"], told["exit_code"]) == (PYTHON_UNSUPPORTED.id, PYTHON_UNSUPPORTED.exit_code)


def test_started_by_its_name_it_finds_a_python_or_says_that_there_is_none(agent: Path, tmp_path: Path) -> None:
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "DRENGINE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([str(agent), "--version"], env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    nothing = subprocess.run(
        ["/bin/sh", str(agent), "doctor"],
        env={"PATH": "/none"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert nothing.returncode == 93
    assert "no Python 3.11 to 3.14" in nothing.stderr


def test_a_machine_that_it_has_nothing_for_is_told_so(agent: Path, start: Start, tmp_path: Path) -> None:
    poor = tmp_path / "poor"
    with zipfile.ZipFile(agent) as whole:
        members = {name: whole.read(name) for name in whole.namelist() if not name.startswith(("native/", "__main__"))}
    poor.write_bytes(pack(members))
    done = start("--version", file=poor)
    assert done.returncode == 93
    assert "nothing for cpython-" in done.stderr


@pytest.mark.parametrize("left", [0.2, 0.6, 0.99999])
@pytest.mark.parametrize("words", [["doctor"], ["status", "--json"]])
def test_a_file_that_was_cut_short_is_told_so(agent: Path, tmp_path: Path, left: float, words: list[str]) -> None:
    data = agent.read_bytes()
    (tmp_path / "short").write_bytes(data[: int(len(data) * left)])
    (tmp_path / "short").chmod(0o755)
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "DRENGINE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [tmp_path / "short", *words], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    _refused_with(done, ONE_FILE_DAMAGED, json_wanted="--json" in words)
    assert not (tmp_path / "cache").exists()


def test_a_file_with_a_damaged_member_is_told_so(agent: Path, start: Start, tmp_path: Path) -> None:
    data = bytearray(agent.read_bytes())
    with zipfile.ZipFile(agent) as whole:
        member = next(each for each in whole.infolist() if each.filename == "common/drengine_agent/cli/main.py")
    middle = member.header_offset + 30 + len(member.filename) + member.compress_size // 2
    data[middle] ^= 0x10
    bad = tmp_path / "bad"
    bad.write_bytes(data)
    _refused_with(start("--version", file=bad), ONE_FILE_DAMAGED)
    _refused_with(start("status", "--json", file=bad), ONE_FILE_DAMAGED, json_wanted=True)
    assert [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".gone")] == []


def test_without_room_anywhere_it_says_so_and_leaves_nothing(agent: Path, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    environment = {name: str(tmp_path / "t") for name in ("DRENGINE_CACHE", "CACHE_DIRECTORY", "TMPDIR")}
    done = subprocess.run(
        [sys.executable, "-IS", str(agent), "--version"],
        env={**environment, "XDG_CACHE_HOME": str(tmp_path / "t")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    _refused_with(done, CACHE_UNUSABLE)
    assert str(tmp_path / "t") in done.stderr
    assert not [path for path in (tmp_path / "t").rglob("*") if path.is_file()]


@pytest.mark.machine
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_where_one_folder_is_full_the_next_is_taken(start: Start, tmp_path: Path) -> None:
    full, roomy = tmp_path / "full", tmp_path / "roomy"
    full.mkdir(0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", full], check=True)
    try:
        done = start("--version", DRENGINE_CACHE=str(full), CACHE_DIRECTORY=str(roomy))
        assert (done.returncode, done.stderr) == (0, "")
        assert not list(full.iterdir())
        assert len(list(roomy.iterdir())) == 1
    finally:
        subprocess.run(["umount", full], check=True)


@pytest.mark.parametrize("harm", ["removed", "emptied", "changed", "memory removed", "folder removed"])
def test_what_was_unpacked_and_is_not_whole_any_more_is_mended(start: Start, tmp_path: Path, harm: str) -> None:
    start("--version")
    (place,) = (tmp_path / "cache").iterdir()
    victim = place / "drengine_agent/cli/main.py"
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    match harm:
        case "removed":
            victim.unlink()
        case "emptied":
            victim.write_bytes(b"")
        case "changed":
            victim.write_bytes(victim.read_bytes().replace(b"a", b"b", 1))
        case "memory removed":
            (place / ".contents").unlink()
        case _:
            shutil.rmtree(victim.parent)
    held = os.open(place, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)  # another one runs from there
    try:
        done = start("--version")
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        os.close(held)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [place.name]
    assert {path: path.read_bytes() for path in before} == before


def test_what_the_file_says_by_itself_is_what_the_list_of_errors_says(agent: Path) -> None:
    text = agent.read_bytes()[:4000].decode(errors="replace") + START.read_text(encoding="utf-8")
    for kind in (PYTHON_UNSUPPORTED, ONE_FILE_DAMAGED, CACHE_UNUSABLE):
        assert re.search(rf'{kind.id}"?,? {kind.exit_code}\b', text), kind.id
    for kind in (ONE_FILE_DAMAGED, CACHE_UNUSABLE):
        assert kind.hint in text


def test_any_python_can_read_how_it_starts() -> None:
    """Old ones have to understand it, to say that they are too old."""
    tree = ast.parse(START.read_text(encoding="utf-8"), feature_version=(3, 4))
    new = (ast.JoinedStr, ast.Starred, ast.NamedExpr, ast.AnnAssign, ast.AsyncFunctionDef, ast.Match)
    assert not [node for node in ast.walk(tree) if isinstance(node, new)]


def _refused_with(done: Answer, kind: ErrorKind, *, json_wanted: bool = False) -> None:
    assert done.returncode == kind.exit_code, done.stderr
    if json_wanted:
        told = json.loads(done.stderr)
        assert (told["error"], told["exit_code"], told["hint"]) == (kind.id, kind.exit_code, kind.hint)
    else:
        assert len(done.stderr.splitlines()) == 2, done.stderr
        assert f"[{kind.id}]" in done.stderr


def test_the_same_members_give_the_same_bytes() -> None:
    members = {"common/b.py": b"b", "common/a.py": b"a" * 1000}
    assert pack(members) == pack(dict(reversed(members.items())))
    assert pack(members) != pack({**members, "common/a.py": b"c"})


def test_every_locked_package_has_its_hashes() -> None:
    lines = requirements()
    assert {"msgspec", "typer", "rich", "xxhash", "zstandard"} <= lines.keys()
    assert all("--hash=sha256:" in line and "==" in line for line in lines.values())
    assert "numpy" not in lines


def test_sections_are_cut_off_behind_what_is_loaded() -> None:
    header = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<QQIHHHHHH", 64, 900, 0, 64, 56, 2, 64, 5, 4)
    segments = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 200, 200, 4096) * 2
    elf = header + segments + bytes(1000)
    kept = without_sections(elf)
    assert len(kept) == 200
    assert struct.unpack_from("<Q", kept, 40) == (0,)
    with pytest.raises(ValueError, match="ELF"):
        without_sections(b"MZ")


async def test_it_enrols_with_nothing_beside_it(start: Start, tmp_path: Path) -> None:
    """So the library for keys and certificates is inside, with its extensions."""
    async with serving(tmp_path / "site") as site:
        words = ("--token", str(site.invitation()), "--name", "shop", "--to", str(tmp_path / "identity"))
        done = await asyncio.to_thread(start, "enrol", *words)
        assert done.returncode == 0, done.stderr
        assert "drengine://main/agent/shop" in done.stdout
        assert (tmp_path / "identity/key.pem").stat().st_mode & 0o777 == 0o600
