"""One decision, whoever asks and by whichever way: each action by command and by REST, in two worlds with one past.

Both worlds live through the same story. Then the command is typed in one, and its request is sent in the other. What
is answered has to be the same JSON, but for times and names of runs, or the same refusal; and both worlds have to be
the same afterwards: what was asked of each run, how it stands, each of its steps.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from drengine.cli import desk
from drengine.cli.main import app
from drengine.cli.runbook import validate as validate_command
from drengine.failover.orders import Orders
from drengine.failover.runbook.values import Mode
from drengine.people.door import Door
from drengine.people.roles import Person
from drengine.terminal import main
from tests.console.rig import ASKING, RUNBOOK, Api, served
from tests.persons import BOB

NOBODY = "20260101T000000-x-0000"
FAILING = RUNBOOK + "    then:\n      - command: ['false']\n        name: by-hand\n"
SECONDS = 15.0


def lived(api: Api, mode: Mode, text: str = RUNBOOK) -> str:
    """A run that somebody began and carried out as far as it goes without people; gives its id."""
    orders = Orders(api.engine, BOB)
    orders.keep("shop", text)
    run = orders.begin(mode, "shop")
    asyncio.run(orders.engine.execute(run, wait=False))
    return run.id


def kept(api: Api) -> str:
    Orders(api.engine, BOB).keep("shop", RUNBOOK)
    return NOBODY


def waiting(api: Api) -> str:
    return lived(api, Mode.FAILOVER, ASKING)


def drilled(api: Api) -> str:
    return lived(api, Mode.DRILL)


def failed_over(api: Api) -> str:
    return lived(api, Mode.FAILOVER)


def written(api: Api) -> str:
    run = failed_over(api)
    (instance,) = api.world.driver.running
    api.world.driver.write(instance, 3, b"r" * 4096)
    return run


def committed(api: Api) -> str:
    run = failed_over(api)
    Orders(api.engine, BOB).commit(run)
    return run


def reprotected(api: Api) -> str:
    failed_over(api)
    return lived(api, Mode.REPROTECT)


def unfenced(api: Api) -> str:
    api.world.sources["shop"].cut_off()
    return lived(api, Mode.FAILOVER)


def failed_by_hand(api: Api) -> str:
    return lived(api, Mode.FAILOVER, FAILING)


class Action(NamedTuple):
    """The same thing, typed and sent; ``RUN`` stands for the story's run."""

    typed: list[str]
    method: str
    path: str
    body: dict[str, Any] | None = None
    by: str = "bob"


def begin(command: str, mode: Mode, *options: str, runbook: str = "shop", **given: Any) -> Action:
    body = {"mode": mode.value, "runbook": runbook, **given}
    return Action([command, runbook, *options, "--no-wait"], "POST", "/runs", body)


def order(typed: list[str], order: str, by: str = "bob", run: str = "RUN", **given: Any) -> Action:
    return Action([each.replace("RUN", run) for each in typed], "POST", f"/runs/{run}/{order}", given, by)


ORDERS = {
    "drill": begin("drill", Mode.DRILL),
    "drill of a point": begin("drill", Mode.DRILL, "--point", "first", point="first"),
    "drill of no point": begin("drill", Mode.DRILL, "--point", "never", point="never"),
    "drill that is held": begin("drill", Mode.DRILL, "--hold", hold=True),
    "drill of nothing": begin("drill", Mode.DRILL, runbook="mail"),
    "failover": begin("failover", Mode.FAILOVER),
    "failover by force": begin("failover", Mode.FAILOVER, "--force", force=True),
    "migration": begin("migrate", Mode.MIGRATION),
    "failback": begin("failback", Mode.FAILBACK),
    "failback that discards": begin("failback", Mode.FAILBACK, "--discard-divergent", discard_divergent=True),
    "reprotect": begin("reprotect", Mode.REPROTECT),
    "approve": order(
        ["approve", "RUN", "--note", "go", "--digest", "DIGEST"], "approve", by="ann", note="go", digest="DIGEST"
    ),
    "approve by name": order(
        ["approve", "RUN", "all.before.1", "--digest", "DIGEST"],
        "approve",
        by="ann",
        step="all.before.1",
        digest="DIGEST",
    ),
    "approve another step": order(
        ["approve", "RUN", "launch:shop", "--digest", "DIGEST"],
        "approve",
        by="ann",
        step="launch:shop",
        digest="DIGEST",
    ),
    "approve as somebody else": order(["approve", "RUN", "--digest", "DIGEST"], "approve", by="eve", digest="DIGEST"),
    "approve what was seen before": order(
        ["approve", "RUN", "--digest", "0" * 64], "approve", by="ann", digest="0" * 64
    ),
    "approve without a role": order(["approve", "RUN", "--digest", "DIGEST"], "approve", by="vic", digest="DIGEST"),
    "approve nothing": order(
        ["approve", "RUN", "--digest", "0" * 64], "approve", by="ann", run=NOBODY, digest="0" * 64
    ),
    "abort": order(["abort", "RUN", "--note", "no"], "abort", note="no"),
    "abort without a role": order(["abort", "RUN"], "abort", by="vic"),
    "abort nothing": order(["abort", "RUN"], "abort", run=NOBODY),
    "resume": order(["run", "resume", "RUN", "--no-wait"], "resume"),
    "resume by force": order(["run", "resume", "RUN", "--force"], "resume", force=True),
    "resume what was done": order(["run", "resume", "RUN", "--done", "all.then.1"], "resume", done="all.then.1"),
    "resume what nobody may do": order(["run", "resume", "RUN", "--done", "fence:shop"], "resume", done="fence:shop"),
    "resume nothing": order(["run", "resume", "RUN"], "resume", run=NOBODY),
    "rollback": order(["rollback", "RUN"], "rollback"),
    "rollback with losses": order(["rollback", "RUN", "--yes", "--note", "back"], "rollback", yes=True, note="back"),
    "rollback nothing": order(["rollback", "RUN"], "rollback", run=NOBODY),
    "commit": order(["commit", "RUN", "--note", "good"], "commit", note="good"),
    "commit nothing": order(["commit", "RUN"], "commit", run=NOBODY),
}
BEGINNINGS = ["drill", "failover", "migration", "failback", "reprotect"]
OF_A_RUN = ["approve", "abort", "resume", "rollback", "commit"]
CASES: dict[Callable[[Api], str], list[str]] = {
    kept: [
        *BEGINNINGS,
        *("drill of a point", "drill of no point", "drill that is held", "drill of nothing"),
        *(f"{each} nothing" for each in OF_A_RUN),
    ],
    waiting: [
        *("drill", *OF_A_RUN, "approve by name", "approve another step", "approve as somebody else"),
        *("approve what was seen before", "approve without a role", "abort without a role"),
    ],
    drilled: OF_A_RUN,
    failed_over: [*OF_A_RUN, *BEGINNINGS, "failback that discards", "rollback with losses"],
    written: ["rollback", "rollback with losses"],
    committed: OF_A_RUN,
    reprotected: ["rollback", "failback"],
    unfenced: ["failover by force", "abort", "resume", "resume by force", "rollback"],
    failed_by_hand: ["resume", "resume what was done", "resume what nobody may do", "abort", "rollback", "commit"],
}
QUESTIONS = {
    "run": Action(["run", "show", "RUN"], "GET", "/runs/RUN"),
    "no run": Action(["run", "show", NOBODY], "GET", f"/runs/{NOBODY}"),
    "runs": Action(["runs"], "GET", "/runs?limit=30"),
    "runs of a runbook": Action(["runs", "--runbook", "shop", "--limit", "1"], "GET", "/runs?runbook=shop&limit=1"),
    "runs of another": Action(["runs", "--runbook", "mail"], "GET", "/runs?runbook=mail"),
    **{
        f"plan: {mode.value}": Action(["plan", "shop", "--mode", mode], "GET", f"/runbooks/shop/plan?mode={mode.value}")
        for mode in Mode
    },
    "plan": Action(["plan", "shop"], "GET", "/runbooks/shop/plan"),
    "plan with a point": Action(["plan", "shop", "--point", "first"], "GET", "/runbooks/shop/plan?point=first"),
    "plan with no point": Action(["plan", "shop", "--point", "never"], "GET", "/runbooks/shop/plan?point=never"),
    "plan of nothing": Action(["plan", "mail"], "GET", "/runbooks/mail/plan"),
    "runbooks": Action(["runbook", "list"], "GET", "/runbooks"),
    "reports": Action(["reports", "list"], "GET", "/reports"),
    "report": Action(["reports", "export", "RUN", "--form", "json"], "GET", "/reports/RUN"),
    "no report": Action(["reports", "export", NOBODY, "--form", "json"], "GET", f"/reports/{NOBODY}"),
    "branches": Action(["branches"], "GET", "/sources/shop/branches"),
    "branches of nobody": Action(["branches", "--source", "nobody"], "GET", "/sources/nobody/branches"),
    "inventory": Action(["inventory", "shop"], "GET", "/sources/shop/inventory"),
    "inventory of nobody": Action(["inventory", "nobody"], "GET", "/sources/nobody/inventory"),
    "points of nobody": Action(["points", "--source", "nobody"], "GET", "/sources/nobody/points"),
}


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[tuple[Api, Api]]:
    """One in which commands are typed, one to which requests are sent."""
    with served(tmp_path / "typed") as one, served(tmp_path / "sent") as other:
        yield one, other


@pytest.fixture
def typing(worlds: tuple[Api, Api], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typing:
    return Typing(worlds[0], monkeypatch, capsys)


class Typing:
    """Commands, to an engine that is open already."""

    def __init__(self, api: Api, monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._api, self._capture = api, capture
        folder = api.engine.config.state.parent
        self._config = folder / "orchestrator.toml"
        registry = folder / "registry.sqlite"
        self._config.write_text(
            f'store = "{api.world.path}"\nstate = "{api.engine.config.state}"\nregistry = "sqlite:///{registry}"\n'
        )

        @asynccontextmanager
        async def opened(_: object, know: Callable[[Door], Person]) -> AsyncIterator[Orders]:
            yield Orders(api.engine, know(api.engine.door))

        monkeypatch.setattr(desk, "open_orders", opened)
        self._patch = monkeypatch
        monkeypatch.setattr(validate_command, "load_drivers", lambda: {"simulated": api.world.driver})

    def __call__(self, words: list[str], *, by: str = "bob") -> tuple[bool, Any]:
        """Whether it was done, and what it said."""
        given = [*words]
        if words[:2] != ["reports", "export"]:
            given.append("--json")
        if words[0] in ("points", "branches", "inventory"):
            given += ["--store", str(self._api.world.path)]
        else:
            given += ["--config", str(self._config)]
        self._patch.setenv("DRENGINE_TOKEN", self._api.tokens[by])
        main(app, given)
        out, err = self._capture.readouterr()
        if out:
            return True, json.loads(out)
        line, hint = err.splitlines()[-2:] if "--json" not in given else ("", err.splitlines()[-1])
        refused = re.fullmatch(r"error: (?P<message>.*) \[(?P<error>.*)\]", line)
        return False, {**refused.groupdict(), "hint": hint[7:]} if refused else json.loads(hint)


def plain(value: Any, folder: Path, key: str = "") -> Any:
    """A value without what differs between two worlds of one past: times, and the random part of names."""
    if isinstance(value, dict):
        return {name: plain(each, folder, name) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each, folder, key) for each in value]
    if isinstance(value, str):
        text = re.sub(r"\d{8}T\d{6}-shop-[0-9a-f]{4}", "RUN", value.replace(str(folder), "FOLDER"))
        text = re.sub(r"--digest [0-9a-f]{64}", "--digest DIGEST", text)
        text = re.sub(r"\bshop-[0-9a-f]{10}\b", "INSTANCE", text)
        text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z", "TIME", text)
        text = re.sub(r"login:[0-9a-f]{8}", "TOKEN", text)
        return (
            "DIGEST"
            if key in ("journal_sha256", "digest")
            else re.sub(r"(\d+\.\d+|\d+( min \d+)?) s\b", "SECONDS", text)
        )
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return bool(value) if key.endswith("_ns") else isinstance(value, float) if key.endswith("seconds") else value
    return value


def differences(typed: Any, sent: Any, at: str = "$") -> list[str]:
    """Where two values differ."""
    if isinstance(typed, dict) and isinstance(sent, dict) and typed.keys() == sent.keys():
        return [line for key in typed for line in differences(typed[key], sent[key], f"{at}.{key}")]
    if isinstance(typed, list) and isinstance(sent, list) and len(typed) == len(sent):
        pairs = zip(typed, sent, strict=True)
        return [line for number, pair in enumerate(pairs) for line in differences(*pair, f"{at}[{number}]")]
    return [] if typed == sent else [f"{at}: typed {typed!r}, sent {sent!r}"]


def filled(text: str, api: Api, run: str) -> str:
    """A word of an action, in a world."""
    if text == "DIGEST":
        return api.engine.look(run)[1].digest
    return text.replace("RUN", run)


def ask(api: Api, action: Action, run: str) -> tuple[bool, Any]:
    body = {**action.body, "digest": filled("DIGEST", api, run)} if "DIGEST" in str(action.body) else action.body
    answer = api.ask(action.method, action.path.replace("RUN", run), body, by=action.by)
    return answer.status in (200, 201), answer.json


def compare(typed: tuple[bool, Any], sent: tuple[bool, Any], one: Path, other: Path) -> None:
    assert typed[0] == sent[0], (typed, sent)
    if typed[0]:
        assert differences(plain(typed[1], one), plain(sent[1], other)) == []
    else:
        assert typed[1]["error"] == sent[1]["id"], (typed, sent)
        for key in ("message", "hint"):
            assert plain(typed[1][key], one) == plain(sent[1][key], other)


def past(api: Api, folder: Path) -> Any:
    """What was asked of every run, and how each stands."""
    orders = Orders(api.engine, BOB)
    told = [
        {"run": asdict(orders.show(each.run)), "asked": [asdict(made) for made in orders.requests(each.run)]}
        for each in orders.runs()
    ]
    return plain(json.loads(json.dumps(told, default=str)), folder)


@pytest.mark.parametrize(
    ("story", "name"),
    [(story, name) for story, names in CASES.items() for name in names],
    ids=[f"{story.__name__}: {name}" for story, names in CASES.items() for name in names],
)
def test_an_order_is_decided_in_one_way(
    story: Callable[[Api], str], name: str, worlds: tuple[Api, Api], typing: Typing, tmp_path: Path
) -> None:
    action, places = ORDERS[name], (tmp_path / "typed", tmp_path / "sent")
    runs = [story(each) for each in worlds]
    typed = typing([filled(each, worlds[0], runs[0]) for each in action.typed], by=action.by)
    sent = ask(worlds[1], action, runs[1])
    after = past(worlds[0], places[0]), past(worlds[1], places[1])
    if typed[0] and "state" in typed[1]:  # REST answers at once, and goes on
        assert sent[1].keys() == typed[1].keys()
        until = time.monotonic() + SECONDS
        while True:
            sent = True, worlds[1].get(f"/runs/{sent[1]['run']}")
            after = after[0], past(worlds[1], places[1])
            same = plain(sent[1], places[1]) == plain(typed[1], places[0]) and after[0] == after[1]
            if same or time.monotonic() > until:
                break
            time.sleep(0.02)
    compare(typed, sent, *places)
    assert differences(*after) == []


@pytest.mark.parametrize("story", [kept, waiting, drilled, written, unfenced], ids=lambda story: story.__name__)
def test_a_question_is_answered_in_one_way(
    story: Callable[[Api], str], worlds: tuple[Api, Api], typing: Typing, tmp_path: Path
) -> None:
    runs = [story(each) for each in worlds]
    for action in QUESTIONS.values():
        typed = typing([each.replace("RUN", runs[0]) for each in action.typed])
        compare(typed, ask(worlds[1], action, runs[1]), tmp_path / "typed", tmp_path / "sent")
    _, points = typing(["points"])  # oldest first, as people read them
    sent = ask(worlds[1], Action([], "GET", "/sources/shop/points"), "")
    compare((True, points[::-1]), sent, tmp_path / "typed", tmp_path / "sent")


@pytest.mark.parametrize(
    "text",
    [RUNBOOK, RUNBOOK.replace("driver:", "drivr:"), RUNBOOK.replace("shop", "mail"), "no: runbook", "\t: [", ""],
)
def test_a_runbook_is_judged_in_one_way(text: str, worlds: tuple[Api, Api], typing: Typing, tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(text)
    done, told = typing(["runbook", "validate", str(file)])
    assert told.pop("file") == str(file)
    assert isinstance(told.pop("checks"), list), "what it needs here is looked at beside its text"
    sent = ask(worlds[1], Action([], "POST", "/runbooks/validate", {"text": text}), "")
    compare((done, told), sent, tmp_path / "typed", tmp_path / "sent")


def test_no_name_in_a_request_leads_to_a_file(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop.yaml").write_text(RUNBOOK)
    monkeypatch.chdir(tmp_path)
    for answer in (
        api.ask("GET", "/runbooks/shop.yaml/plan"),
        api.ask("POST", "/runs", {"mode": "drill", "runbook": "shop.yaml"}),
    ):
        assert (answer.status, answer.json["id"]) == (404, "unknown-runbook")
