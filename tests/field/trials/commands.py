"""What commands say: for machines, to places that can't take it, and about files that are none."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.field.engine import Engine
from tests.field.ground import DRENGINE, Ground, Pair
from tests.field.trial import trial

MIB = 1 << 20
INTERNAL = 125
ODD_YAML: dict[str, str | bytes] = {
    "nothing": "",
    "only a comment": "# a runbook\n",
    "null": "null\n",
    "a number": "42\n",
    "a list": "- version: 1\n- name: shop\n",
    "a tab": "version: 1\n\tname: shop\n",
    "a byte order mark": "\ufeffversion: 1\nname: shop\n",
    "UTF-16": "version: 1\nname: shop\n".encode("utf-16"),
    "latin-1": "version: 1\nname: caf\u00e9\n".encode("latin-1"),
    "zero bytes": b"version: 1\0\nname: shop\n",
    "random bytes": bytes(range(256)) * 8,
    "Windows line ends": "version: 1\r\nname: shop\r\nsources:\r\n  shop: {}\r\nwaves: []\r\n",
    "a key twice": "version: 1\nversion: 1\nname: shop\n",
    "a merge key": "base: &base {driver: command}\nversion: 1\nname: shop\nsources:\n  shop: {launch: {<<: *base}}\n",
    "a billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{two}: &{two} [{','.join([f'*{one}'] * 9)}]\n" for one, two in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "an anchor that holds itself": "version: &a\n  - *a\n",
    "an unknown anchor": "version: *nothing\n",
    "a tag of Python": "version: !!python/object/apply:os.system ['touch /tmp/owned']\n",
    "two documents": "version: 1\nname: shop\n---\nversion: 1\nname: mill\n",
    "a thousand brackets": "[" * 1000,
    "very deep": "".join("  " * depth + f"k{depth}:\n" for depth in range(400)),
    "the Norwegian problem": "version: 1\nname: no\nsources: {yes: {launch: {driver: off}}}\nwaves: []\n",
    "a number for a duration": "version: 1\nname: shop\nobjectives: {rto: 120}\nsources: {}\nwaves: []\n",
    "sexagesimal": "version: 1\nname: shop\nobjectives: {rto: 1:30}\nsources: {}\nwaves: []\n",
    "a long line": "version: 1\nname: " + "x" * 200_000 + "\n",
}


@trial(seconds_max=300)
def odd_yaml_is_judged_and_never_a_traceback(ground: Ground) -> None:
    """25 odd files given as runbooks: each is refused in words, within seconds, and none ends in a traceback."""
    assert len(ODD_YAML) == 25
    path = ground.folder / "odd.yaml"
    for name, text in ODD_YAML.items():
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        said = ground.drengine("runbook", "validate", path, ok=False)
        assert said.status not in (0, INTERNAL), f"{name}: {said}"
        assert said.error.strip() or said.output.strip(), f"{name}: it is refused without a word"
        assert len(said.error + said.output) < 20_000, f"{name}: {len(said.error + said.output)} characters"
    ground.measured["files"] = len(ODD_YAML)


@trial(seconds_max=240)
def every_command_speaks_json(ground: Ground) -> None:
    """20 commands and more with --json: one JSON value on standard output and nothing else, or one error."""
    pair = Pair(ground, {"data": ground.image("data", 4 * MIB, filled=MIB)}).start()
    pair.until_equal()
    engine = Engine(ground, pair)
    store, agent = ("--store", str(pair.store)), ("--config", str(pair.agent_file))
    restored = ground.folder / "restored.img"
    tried = 0
    for command in ("status", "points", "verify latest", "scrub", "pin latest", "unpin latest", "branches"):
        ground.drengine(*command.split(), *store, "--json").json()
        tried += 1
    ground.drengine("restore", "latest", *store, "--to", f"data={restored}", "--json").json()
    ground.drengine("runbook", "validate", engine.runbook, "--json").json()
    run = engine.say("drill", str(engine.runbook)).json()["run"]
    for command in (f"plan {engine.runbook}", "runs", f"run show {run}", "reports list", "runbook list"):
        engine.say(*command.split()).json()
        tried += 1
    for command in ("status", "cut", "pause", "resume", "sync", "check-config", "doctor"):
        ground.agent(command, *agent, "--json").json()
        tried += 1
    for command in (
        ("points", "--store", str(ground.folder / "none")),
        ("verify", "9-9", *store),
        ("restore", "latest", *store, "--to", f"data={restored}"),
        ("run", "show", "none", "--config", str(engine.file)),
        ("drill", "none.yaml", "--config", str(engine.file)),
    ):
        said = ground.drengine(*command, "--json", ok=False)
        assert said.refusal()["hint"], said
        assert not said.output.strip(), f"an error has output: {said}"
        tried += 1
    ground.measured["commands"] = tried + 3


@trial(seconds_max=150)
def output_that_cannot_be_written_is_no_internal_error(ground: Ground) -> None:
    """A full device, a closed or broken output, a latin-1 terminal, 80 columns: a plain end, ids and times whole."""
    label = "caf\u00e9-\u0142\u00f3d\u017a"
    pair = Pair(ground, {"data": ground.image("data", MIB)}).start()
    ground.agent("cut", "--label", "plain", "--config", pair.agent_file)
    ground.agent("cut", "--label", label, "--config", pair.agent_file, ok=False)
    ground.until("the points", lambda: [each for each in pair.points() if each.label == "plain"])
    program = f"{sys.executable} -m {DRENGINE}"
    for command in ("points", "status", "branches", "points --json", "--help", "points --help"):
        line = f"{program} {command} " + ("" if "help" in command else f"--store {pair.store}")
        for how in (
            f"{line} >/dev/full",
            f"{line} >&-",
            f"{line} | true",
            f"{line} >/dev/full 2>&1",
            f"{line} >&- 2>&-",
        ):
            said = ground.run("bash", "-o", "pipefail", "-c", how, ok=False)
            assert said.status != INTERNAL, said
            assert "internal" not in said.error, said
            if how.endswith(">/dev/full"):
                assert said.status, f"what could not be written was a success: {said}"
                assert said.error.strip(), f"it fails without a word: {said}"
    for encoding in ("latin-1", "ascii"):
        for command in ("points", "status", "branches"):
            environment = {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
            ground.drengine(command, "--store", pair.store, env=environment)
    _nothing_is_cut(ground, pair)


def _nothing_is_cut(ground: Ground, pair: Pair) -> None:
    """At 80 columns, at a terminal and without one, ids and times stand whole."""
    points = ground.drengine("points", "--store", pair.store, "--json").json()
    program = f"{sys.executable} -m {DRENGINE}"
    for columns in ("80", "60"):
        plain = ground.drengine("points", "--store", pair.store, env={"COLUMNS": columns}).output
        done = subprocess.run(
            ["script", "-qec", f"stty cols {columns}; {program} points --store {pair.store}", "/dev/null"],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        terminal = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.stdout)
        for shown in (plain, terminal):
            for point in points:
                assert re.search(rf"\b{point['id']}\b", shown), f"{point['id']} is not whole at {columns}: {shown}"
                when = point["time"].replace("T", " ")[: len("2026-11-25 19:44:05.695")]
                assert when in shown, f"{when} is not whole at {columns}: {shown}"
