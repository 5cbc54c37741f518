"""What is written about runbooks is true."""

from __future__ import annotations

import json
import re
from inspect import getsource
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec import inspect
from typer.testing import CliRunner

from drengine.failover.drivers.available import load_drivers
from drengine.failover.reading import check, fit, reader
from drengine.failover.reading.reader import examine
from drengine.failover.reading.schema import runbook_schema
from drengine.failover.runbook import document, sense
from drengine.failover.runbook.init import initial_runbook
from drengine.failover.runbook.launches import KnownSource
from drengine.failover.runbook.values import Fence, HostFence, Runbook
from drengine.failover.steps.kinds import step_kinds
from drengine.store.store import Store
from tests.console.schema import mistakes
from tests.failover.engine.world import World
from tests.failover.runbook.books import SMALL, WHOLE
from tests.failover.runbook.test_reader import CASES

PAGE = (Path(__file__).parents[3] / "docs/runbooks.md").read_text()


def test_the_example_of_the_manual_can_be_run() -> None:
    example = re.search(r"```yaml\n(.*?)```", PAGE, re.S)
    assert example
    assert examine(example[1], drivers=load_drivers()).findings == ()


def test_every_key_is_in_the_manual() -> None:
    found: set[str] = set()

    def walk(kind: Any) -> None:
        match kind:
            case inspect.StructType(fields=fields):
                for each in fields:
                    found.add(each.encode_name)
                    walk(each.type)
            case inspect.UnionType(types=types):
                for each in types:
                    walk(each)
            case inspect.ListType(item_type=item):
                walk(item)
            case inspect.Metadata(type=inner):
                walk(inner)
            case inspect.DictType(value_type=value):
                walk(value)
            case _:
                return

    walk(inspect.type_info(Runbook))
    found.remove("actions")
    for name, kind in step_kinds().actions.items():
        found.add(name)
        walk(inspect.type_info(kind.settings_type))
    assert {"then", "key_file", "on_failure"} <= found
    assert sorted(key for key in found if f"`{key}`" not in PAGE and f"`{key}:" not in PAGE) == []


def test_every_kind_of_mistake_is_in_the_manual() -> None:
    texts = [Path(module.__file__ or "").read_text() for module in (check, document, fit, reader, sense)]
    texts += [getsource(type(kind)) for kind in step_kinds().actions.values()]
    ids = set(re.findall(r'(?:\.error|\.warning|_refuse|\.add|Finding)\(\s*"([a-z-]+)"', "\n".join(texts)))
    ids |= {case[2] for case in CASES.values()}
    assert len(ids) > 20
    assert sorted(id for id in ids if f"`{id}`" not in PAGE) == []


@pytest.mark.parametrize("text", [SMALL, WHOLE])
def test_what_can_be_run_fits_the_schema(text: str) -> None:
    schema = runbook_schema()
    assert mistakes(yaml.safe_load(text), schema, schema) == []


BEYOND_A_SCHEMA = {
    *("duplicate-key", "bad-key", "yaml-tag", "yaml-alias", "yaml-syntax", "many-documents", "control-character"),
    *("way-up", "unknown-source", "unused-source", "unknown-wave", "wave-cycle", "duplicate-name", "bad-reference"),
    *("bad-point", "bad-schedule", "bad-command", "merge-key"),
}
NOT_BY_SCHEMA = {"no time", "for ever", "an approval by nobody", "an address that is none"}


@pytest.mark.parametrize("name", [each for each, case in CASES.items() if case[2] not in BEYOND_A_SCHEMA])
def test_what_an_editor_can_know_it_is_told(name: str) -> None:
    if name in NOT_BY_SCHEMA:
        return
    old, new, *_ = CASES[name]
    schema = runbook_schema()
    assert mistakes(yaml.safe_load(SMALL.replace(old, new)), schema, schema) != []


def test_every_key_is_explained_in_the_schema() -> None:
    for name, each in runbook_schema()["$defs"].items():
        for key, value in each.get("properties", {}).items():
            assert value.get("description") or "$ref" in value, f"{name}.{key}"


@pytest.mark.parametrize("driver", ["command", "qemu", "standby"])
@pytest.mark.parametrize("name", ["shop", "7eleven", "true", "a.b-c_d", "null", "1.5"])
def test_a_first_runbook_has_the_right_shape(driver: str, name: str) -> None:
    sources = [KnownSource(name, {"root": 10 << 30, "data": 1}), KnownSource("other", {})]
    examined = examine(initial_runbook(name, sources, driver=driver))
    assert examined.runbook is not None, examined.findings
    assert examined.runbook.name == name
    assert list(examined.runbook.sources) == [name, "other"]
    assert [each.name for each in examined.runbook.waves] == [name, "other"]


@pytest.mark.parametrize("name", ["shop", "7eleven"])
def test_a_first_runbook_for_a_recovery_host_is_complete(name: str) -> None:
    contents = {"data": "xfs", "logs": "ext", "root": "gpt", "swap": "swap", "raw": ""}
    source = KnownSource(name, dict.fromkeys(contents, 1 << 30), contents)
    text = initial_runbook(name, [source], driver="standby", host="recovery-1", fence=["pdu", "off", "{source}"])
    examined = examine(text, drivers=load_drivers())
    assert not examined.findings, "it validates without a word"
    assert examined.runbook is not None
    found = examined.runbook.sources[name]
    assert found.fence is not None
    assert (found.launch.host, found.fence.command) == ("recovery-1", ["pdu", "off", name])
    assert [(each["volume"], each["at"]) for each in found.launch.settings["mounts"]] == [
        ("data", f"/srv/{name}/data"),
        ("logs", f"/srv/{name}/logs"),
    ]
    (check,) = examined.runbook.waves[0].after_steps
    assert check.inside == name


def test_a_first_runbook_fences_a_source_where_it_lives() -> None:
    moved = KnownSource("shop", {}, home="shop2")
    examined = examine(initial_runbook("shop", [moved], driver="command", fence=["pdu", "off", "{source}"]))
    assert examined.runbook is not None, examined.findings
    fence = Fence(homes={"shop2": HostFence(command=["pdu", "off", "shop2"])})
    assert examined.runbook.sources["shop"].fence == fence


def test_a_runbook_without_a_fence_says_plainly_what_that_means() -> None:
    text = initial_runbook("shop", [KnownSource("shop", {"data": 1})], driver="command")
    assert "a failover of shop is BLOCKED (exit 107)" in text
    examined = examine(text, drivers=load_drivers())
    assert [each.message for each in examined.findings if each.id == "no-fence"] == [
        "'shop' has no fence command: a failover is blocked if its agent does not answer, or only watches its disks"
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("host: recovery-1", ""), "no-host"),
        (("inside: shop", "inside: mail"), "unknown-source"),
        (("driver: standby\n      host: recovery-1", "driver: command"), "no-inside"),
        (("command: [ls, /srv/shop/data]", "wait: 5s"), "no-inside"),
    ],
)
def test_what_can_be_known_before_is_said_by_validate(changed: tuple[str, str], said: str) -> None:
    source = KnownSource("shop", {"data": 1 << 30}, {"data": "ext"})
    text = initial_runbook("shop", [source], driver="standby", host="recovery-1", fence=["off"])
    assert changed[0] in text
    found = examine(text.replace(*changed), drivers=load_drivers()).findings
    assert said in [each.id for each in found], found


def test_a_first_runbook_comes_from_what_the_store_holds(tmp_path: Path) -> None:
    from drengine.cli.main import app

    world = World(tmp_path / "world", "shop", "mail")
    store = next(each.parent for each in (tmp_path / "world").rglob("STORE"))
    world.store.close()
    run = CliRunner().invoke
    file = tmp_path / "all.yaml"
    done = run(app, ["runbook", "init", "all", "--store", str(store), "-o", str(file)])
    assert done.exit_code == 0, done.output
    examined = examine(file.read_text())
    assert examined.runbook is not None
    assert set(examined.runbook.sources) == {"shop", "mail"}
    again = run(app, ["runbook", "init", "all", "--store", str(store), "-o", str(file)])
    assert getattr(again.exception, "kind", None) is not None
    only = run(app, ["runbook", "init", "all", "--store", str(store), "--source", "mail"])
    assert list(yaml.safe_load(only.stdout)["sources"]) == ["mail"]
    checked = run(app, ["runbook", "validate", str(file), "--store", str(store), "--json"])
    assert json.loads(checked.stdout)["valid"] is True
    nowhere = run(app, ["runbook", "init", "all", "--store", str(store), "--driver", "standby"])
    assert nowhere.exit_code == 2
    at = run(
        app, ["runbook", "init", "all", "--store", str(store), "--driver", "standby", "--host", "r1", "--fence", "a b"]
    )
    found = yaml.safe_load(at.stdout)["sources"]["mail"]
    assert (found["launch"]["host"], found["fence"]["command"]) == ("r1", ["a", "b"])
    assert isinstance(world.store, Store)
