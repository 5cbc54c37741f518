"""Planning an installation: what is there already stays, what somebody changed is not touched, nothing is forgotten."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine_agent.errors import AGENT_RUNNING
from drengine_agent.install import places
from drengine_agent.install.acts import CheckStopped, Plan, Run, Untrack, WriteFile
from drengine_agent.install.errors import INSTALL_CONFLICT
from drengine_agent.install.perform import perform
from drengine_agent.install.places import COMMAND, CONFIG, ENABLED, PROGRAM, RECORD, STATE, UNIT, Present, look, within
from drengine_agent.install.plan import Wanted, directories_of, plan_install, plan_uninstall

OWN = (STATE, places.RUNTIME, places.CACHE)
FIRST = Wanted("1", "shop", STATE, b"program 1", b"config 1", b"unit 1")
SECOND = Wanted("2", "shop", STATE, b"program 2", None, b"unit 2")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The file system of a host that has systemd."""
    root = tmp_path / "image"
    for name in ("usr/lib/systemd", "usr/local/lib", "usr/local/bin", "var/lib", "var/cache", "etc/systemd/system"):
        (root / name).mkdir(parents=True)
    (root / "usr/lib/systemd/systemd").write_text("")
    return root


def tree(root: Path) -> dict[str, tuple[int, bytes | str]]:
    """Everything below a directory: mode and content."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        content: bytes | str = str(path.readlink()) if path.is_symlink() else ""
        found[str(path.relative_to(root))] = (mode, path.read_bytes() if path.is_file() else content)
    return found


def install(root: Path, wanted: Wanted) -> Plan:
    plan = plan_install(wanted, look(root, directories_of(wanted)))
    perform(plan, root, told=lambda line: None)
    return plan


def uninstall(root: Path, *, purge: bool = False) -> Plan:
    plan = plan_uninstall(look(root, OWN), purge=purge)
    perform(plan, root, told=lambda line: None)
    return plan


def test_what_was_installed_and_removed_leaves_nothing(image: Path) -> None:
    before = tree(image)
    install(image, FIRST)
    assert within(image, PROGRAM).read_bytes() == b"program 1"
    assert within(image, CONFIG).stat().st_mode & 0o777 == 0o600
    assert within(image, STATE).stat().st_mode & 0o777 == 0o700
    assert within(image, ENABLED).resolve() == within(image, UNIT).resolve()
    uninstall(image)
    assert tree(image) == before


def test_installing_twice_is_installing_once(image: Path) -> None:
    install(image, FIRST)
    once = tree(image)
    assert install(image, FIRST).acts == ()
    assert tree(image) == once


def test_an_upgrade_replaces_program_and_unit_and_leaves_the_configuration(image: Path) -> None:
    install(image, FIRST)
    install(image, SECOND)
    assert within(image, PROGRAM).read_bytes() == b"program 2"
    assert within(image, UNIT).read_bytes() == b"unit 2"
    assert within(image, CONFIG).read_bytes() == b"config 1"
    before = tree(image)
    assert install(image, SECOND).acts == ()
    assert tree(image) == before


def test_a_changed_configuration_is_never_overwritten_and_nothing_else_is_done(image: Path) -> None:
    install(image, FIRST)
    within(image, CONFIG).write_bytes(b"by hand")
    before = tree(image)
    with pytest.raises(DrengineError) as refused:
        install(image, Wanted("2", "shop", STATE, b"program 2", b"config 2", b"unit 2"))
    assert refused.value.kind is INSTALL_CONFLICT
    assert tree(image) == before


def test_a_changed_unit_is_kept_and_said_while_the_program_is_upgraded(image: Path) -> None:
    install(image, FIRST)
    within(image, UNIT).write_bytes(b"by hand")
    plan = install(image, SECOND)
    assert any(str(UNIT) in note for note in plan.notes)
    assert within(image, UNIT).read_bytes() == b"by hand"
    assert within(image, PROGRAM).read_bytes() == b"program 2"


def test_what_somebody_changed_outlives_an_uninstall_but_no_purge(image: Path) -> None:
    before = tree(image)
    install(image, FIRST)
    within(image, CONFIG).write_bytes(b"by hand")
    plan = uninstall(image)
    assert any("--purge" in note for note in plan.notes)
    assert within(image, CONFIG).read_bytes() == b"by hand"
    uninstall(image, purge=True)
    assert tree(image) == before


def test_a_state_directory_that_was_there_before_is_kept(image: Path) -> None:
    (image / "srv/data").mkdir(parents=True)
    (image / "srv/data/precious").write_text("x")
    before = tree(image)
    install(image, Wanted("1", "shop", Path("/srv/data"), b"p", b"c", b"u"))
    plan = uninstall(image)
    assert any("/srv/data" in note for note in plan.notes)
    assert tree(image) == before


def test_a_link_that_leads_out_of_the_image_is_refused(image: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (image / "etc/drengine").symlink_to(outside)
    with pytest.raises(DrengineError) as refused:
        install(image, FIRST)
    assert refused.value.kind is INSTALL_CONFLICT
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("path", [CONFIG, UNIT, PROGRAM], ids=lambda path: path.name)
def test_a_link_in_a_files_place_is_refused(image: Path, path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("x")
    within(image, path).parent.mkdir(parents=True, exist_ok=True)
    within(image, path).symlink_to(victim)
    with pytest.raises(DrengineError) as refused:
        install(image, FIRST)
    assert refused.value.kind is INSTALL_CONFLICT
    assert victim.read_text() == "x"


@pytest.mark.parametrize("wanted", [FIRST, SECOND], ids=["install", "upgrade"])
def test_cut_off_after_any_act_the_same_command_finishes_and_uninstall_leaves_nothing(
    wanted: Wanted, image: Path, tmp_path: Path
) -> None:
    before = tree(image)
    if wanted is SECOND:
        install(image, FIRST)
    acts = plan_install(wanted, look(image, directories_of(wanted))).acts
    for cut in range(len(acts) + 1):
        perform(Plan(acts[:cut]), image, told=lambda line: None)
        if cut % 2:
            install(image, wanted)
            assert within(image, PROGRAM).read_bytes() == wanted.program
            assert within(image, UNIT).read_bytes() == wanted.unit
        uninstall(image)
        assert tree(image) == before, f"cut after {acts[:cut]}"
        if wanted is SECOND:
            install(image, FIRST)


def test_cut_off_in_an_uninstall_the_next_one_finishes(image: Path) -> None:
    before = tree(image)
    install(image, FIRST)
    for cut in range(len(plan_uninstall(look(image, OWN), purge=False).acts)):
        acts = plan_uninstall(look(image, OWN), purge=False).acts
        perform(Plan(acts[:cut]), image, told=lambda line: None)
        uninstall(image)
        assert tree(image) == before, cut
        install(image, FIRST)


def test_any_order_of_installing_editing_and_removing_loses_no_edit(image: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    edited = False
    for _ in range(120):
        step = chance.choice(["first", "second", "edit", "remove"])
        if step == "edit" and within(image, CONFIG).exists():
            within(image, CONFIG).write_bytes(b"by hand")
            edited = True
        elif step == "first":
            try:
                install(image, FIRST)
                assert not edited
            except DrengineError as error:
                assert error.kind is INSTALL_CONFLICT
                assert edited
        elif step == "second" and within(image, CONFIG).exists():
            install(image, SECOND)
        elif step == "remove":
            uninstall(image)
        if edited:
            assert within(image, CONFIG).read_bytes() == b"by hand"


def present(systemd: str, *, image: bool = False) -> Present:
    return Present({}, {}, frozenset(), None, systemd, image)


def runs(plan: Plan) -> list[str]:
    return [" ".join(act.arguments) for act in plan.acts if isinstance(act, Run)]


def test_the_service_is_started_only_where_systemd_runs_and_somebody_wants_it() -> None:
    start = ["systemctl daemon-reload", "systemctl restart drengine-agent.service"]
    assert runs(plan_install(FIRST, present("running"))) == start
    assert runs(plan_install(FIRST, present("installed"))) == []
    assert runs(plan_install(FIRST, present("running", image=True))) == []


def test_without_systemd_no_unit_is_written_and_it_says_how_to_start() -> None:
    plan = plan_install(FIRST, present("absent"))
    assert not any(isinstance(act, WriteFile) and act.path == UNIT for act in plan.acts)
    assert any("supervisor" in note for note in plan.notes)


def test_a_removal_stops_first_and_takes_the_tracker_out_of_the_kernel(image: Path) -> None:
    install(image, FIRST)
    found = look(image, OWN)
    running = Present(found.files, found.links, found.directories, found.record, "running", image=False)
    plan = plan_uninstall(running, purge=False)
    assert str(plan.acts[0]) == "run     systemctl stop drengine-agent.service"
    assert plan.acts[1:3] == (CheckStopped(STATE), Untrack("shop"))


def test_nothing_is_removed_while_an_agent_runs(image: Path, tmp_path: Path) -> None:
    import fcntl

    install(image, FIRST)
    before = tree(image)
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        acts = (CheckStopped(tmp_path), *plan_uninstall(look(image, OWN), purge=False).acts)
        with pytest.raises(DrengineError) as refused:
            perform(Plan(acts), image, told=lambda line: None)
    assert refused.value.kind is AGENT_RUNNING
    assert tree(image) == before
    perform(Plan(acts), image, told=lambda line: None)
    assert tree(image) != before


def test_the_record_is_written_before_and_removed_after_what_it_names(image: Path) -> None:
    acts = plan_install(FIRST, look(image, directories_of(FIRST))).acts
    written = [act.path for act in acts if isinstance(act, WriteFile)]
    assert written[0] == RECORD
    install(image, FIRST)
    shown = plan_uninstall(look(image, OWN), purge=False).shown
    assert shown[-2].endswith(str(RECORD))
    assert str(RECORD.parent) in shown[-1]


def test_a_damaged_record_is_refused(image: Path) -> None:
    install(image, FIRST)
    within(image, RECORD).write_text('{"files": []}')
    with pytest.raises(DrengineError) as refused:
        look(image, OWN)
    assert refused.value.kind is INSTALL_CONFLICT
    assert places.RECORD.name in refused.value.message


def test_a_program_of_ours_goes_when_a_package_brings_it(image: Path) -> None:
    before = tree(image)
    install(image, FIRST)
    install(image, Wanted("2", "shop", STATE, None, None, b"unit of the package"))
    assert not within(image, PROGRAM).exists()
    assert not within(image, COMMAND).is_symlink()
    assert within(image, UNIT).read_bytes() == b"unit of the package"
    uninstall(image)
    assert tree(image) == before
