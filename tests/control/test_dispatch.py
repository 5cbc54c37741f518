"""Commands that come twice, late, early, retained, replayed, across restarts and jumps of the clock: each is carried
out at most once that matters, and always gets one and the same answer.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.control.command_log import CommandLog
from drengine.control.dispatch import RUNNING_MAX, Action, Dispatcher, Generations, Ignored, Tell
from drengine.control.gate import Gate
from drengine.control.messages import Answer, Command, Verb
from drengine.model.errors import BAD_POINT, DrengineError
from tests.clock import ManualClock

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


class Desk:
    """A dispatcher over a file, restarted at will; what it does and says is noted here."""

    def __init__(
        self,
        directory: Path,
        *,
        capacity: int = 512,
        generation: int = 3,
        gate: Gate | None = None,
        now_ns: int = START,
    ) -> None:
        self.clock = ManualClock(now_ns)
        self.gate = gate
        self.generation = generation
        self.path = directory / "commands"
        self.capacity = capacity
        self.done: Counter[str] = Counter()
        self.answers: list[Answer] = []
        self.answered: list[str] = []
        self.failures: list[str] = []
        self.result: dict[str, Any] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self.fail: Exception | None = None

    async def open(self) -> Desk:
        self.log = CommandLog(self.path, capacity=self.capacity)
        await self.log.load()
        self.dispatcher = Dispatcher(
            {
                Verb.SYNC: Action(self.act),
                Verb.CUT: Action(self.act, repeatable=False),
                Verb.FENCE: Action(self.act, Generations.NOT_OLDER, bounded=False),
                Verb.STATUS: Action(self.act, Generations.ANY, remembered=False),
            },
            self.log,
            generation=lambda: self.generation,
            answer=self.answer,
            clock=self.clock,
            gate=self.gate,
        )
        return self

    async def act(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        tell({"half": True})
        await self.hold.wait()
        if self.fail:
            raise self.fail
        if self.finals(command.id):
            self.failures.append(f"{command.id} is carried out after it was answered")
        self.done[command.id] += 1
        return self.result or {"sequence": sum(self.done.values())}

    async def answer(self, answer: Answer) -> None:
        self.answered.append(answer.order)
        self.answers.append(msgspec.structs.replace(answer, order=""))

    def command(self, id: str = "a", verb: Verb = Verb.CUT, seconds: float = 30.0, generation: int = 3) -> Command:
        expires = self.clock.now_ns() + int(seconds * SECOND)
        return Command(id=id, verb=verb, generation=generation, expires_ns=expires)

    def deliver(self, command: Command, *, retained: bool = False) -> None:
        self.dispatcher.receive(msgspec.json.encode(command), retained=retained)

    async def rest(self) -> None:
        """Until everything that can be done without the clock or the world is done."""
        while self.dispatcher._tasks and self.hold.is_set():
            await asyncio.wait(set(self.dispatcher._tasks))

    async def crash(self) -> None:
        await self.dispatcher.close()
        await self.open()

    def finals(self, id: str = "a") -> list[Answer]:
        return [answer for answer in self.answers if answer.done and answer.id == id]

    def ignored(self, reason: Ignored) -> int:
        return self.dispatcher.ignored[reason]


async def turn_until(true: Callable[[], object]) -> None:
    """Let the event loop turn, without the clock, until something is true."""
    for _ in range(10_000):
        if true():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never happened")


async def began(desk: Desk) -> None:
    """Let what was delivered reach the point where it is held."""
    await turn_until(lambda: any(not answer.done for answer in desk.answers))


@pytest.mark.fault(50)
async def test_a_duplicate_is_answered_but_not_carried_out_again(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    command = desk.command()
    for _ in range(3):
        desk.deliver(command)
        await desk.rest()
    assert desk.done == {"a": 1}
    assert desk.finals() == [Answer(id="a", done=True, ok=True, result={"sequence": 1})] * 3


@pytest.mark.fault(50)
async def test_a_replay_long_after_its_time_gets_the_old_answer_and_does_nothing(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    command = desk.command()
    desk.deliver(command)
    await desk.rest()
    desk.clock.advance(3600)
    await desk.crash()
    desk.deliver(command)
    await desk.rest()
    assert desk.done == {"a": 1}
    assert len(set(map(str, desk.finals()))) == 1


@pytest.mark.fault(50)
async def test_a_retained_command_is_ignored(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    desk.deliver(desk.command(), retained=True)
    desk.dispatcher.receive(b"", retained=True)  # a retained message being cleared
    await desk.rest()
    assert (desk.done, desk.answers, desk.ignored(Ignored.RETAINED)) == ({}, [], 1)


@pytest.mark.fault(50)
async def test_an_expired_command_is_ignored_however_late(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    command = desk.command(seconds=5)
    desk.clock.advance(5)
    desk.deliver(command)
    await desk.rest()
    assert (desk.done, desk.answers, desk.ignored(Ignored.EXPIRED)) == ({}, [], 1)


async def test_a_command_for_years_to_come_is_ignored(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    desk.deliver(desk.command(seconds=1e9))
    await desk.rest()
    assert (desk.done, desk.ignored(Ignored.TOO_FAR)) == ({}, 1)


@pytest.mark.fault(50)
@pytest.mark.parametrize(
    ("verb", "generation", "obeyed"),
    [
        (Verb.CUT, 2, False), (Verb.CUT, 3, True), (Verb.CUT, 4, False),
        (Verb.FENCE, 2, False), (Verb.FENCE, 3, True), (Verb.FENCE, 4, True),
        (Verb.STATUS, 1, True), (Verb.STATUS, 9, True),
    ],
)  # fmt: skip
async def test_a_command_of_another_generation_is_refused(
    tmp_path: Path, verb: Verb, generation: int, obeyed: bool
) -> None:
    desk = await Desk(tmp_path).open()
    desk.deliver(desk.command(verb=verb, generation=generation))
    await desk.rest()
    assert desk.done["a"] == obeyed
    assert desk.finals()[0].ok is obeyed
    assert desk.ignored(Ignored.GENERATION) == (not obeyed)


@pytest.mark.fault(50)
async def test_a_refusal_stays_the_answer_when_the_generation_moves(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    early = desk.command(generation=4)
    desk.deliver(early)
    await desk.rest()
    desk.generation = 4
    desk.deliver(early)
    await desk.rest()
    assert [answer.ok for answer in desk.finals()] == [False, False]
    assert desk.done == {}


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"{", b"null", b"[]", b'{"id":"a"}', b"\xff\xfe", b"[" * 10_000,
        b'{"id":"","verb":"cut","generation":3,"expires_ns":1}',
        b'{"id":"a\\u0000b","verb":"cut","generation":3,"expires_ns":1}',
        b'{"id":"a","verb":"format-disk","generation":3,"expires_ns":1}',
        b'{"id":"a","verb":"cut","generation":"3","expires_ns":1}',
        b'{"id":"' + b"a" * 70_000 + b'","verb":"cut","generation":3,"expires_ns":1}',
    ],
)  # fmt: skip
async def test_what_is_no_command_is_counted_and_forgotten(tmp_path: Path, payload: bytes) -> None:
    desk = await Desk(tmp_path).open()
    desk.dispatcher.receive(payload, retained=False)
    await desk.rest()
    assert (desk.answers, desk.ignored(Ignored.MALFORMED)) == ([], 1)


async def test_an_interrupted_command_that_must_not_be_repeated_says_so(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    desk.hold.clear()
    command = desk.command(verb=Verb.CUT)
    desk.deliver(command)
    await began(desk)
    await desk.crash()
    desk.hold.set()
    desk.deliver(command)
    await desk.rest()
    assert desk.done == {}
    assert [answer.code for answer in desk.finals()] == ["command-dropped"]


async def test_an_interrupted_command_that_may_be_repeated_is(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    desk.hold.clear()
    command = desk.command(verb=Verb.SYNC)
    desk.deliver(command)
    await began(desk)
    await desk.crash()
    desk.hold.set()
    desk.deliver(command)
    await desk.rest()
    assert desk.done == {"a": 1}
    assert desk.finals()[0].ok


async def test_who_asks_again_while_it_runs_is_told_how_far_it_is(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    desk.hold.clear()
    command = desk.command()
    desk.deliver(command)
    await began(desk)
    desk.answers.clear()
    desk.deliver(command)
    await began(desk)
    desk.hold.set()
    await desk.rest()
    assert desk.done == {"a": 1}
    assert len(desk.finals()) == 1


async def test_a_command_is_given_up_when_its_time_is_over_unless_somebody_asks_for_more(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    desk.hold.clear()
    desk.deliver(desk.command(seconds=10))
    await began(desk)
    desk.clock.advance(5)
    desk.deliver(desk.command(seconds=10))  # the same id, prolonged
    for seconds in (6, 3):  # beyond the first deadline, within the second
        desk.clock.advance(seconds)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not desk.finals()
    desk.clock.advance(2)
    await turn_until(desk.finals)
    assert desk.finals()[0].code == "command-dropped"
    assert desk.done == {}


async def test_fencing_is_never_given_up_halfway(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    desk.hold.clear()
    desk.deliver(desk.command(verb=Verb.FENCE, seconds=1))
    await began(desk)
    desk.clock.advance(100)
    for _ in range(20):
        await asyncio.sleep(0)
    desk.hold.set()
    await desk.rest()
    assert desk.finals()[0].ok


async def test_failures_are_answers_with_their_id(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    for id, error, code in (
        ("a", DrengineError(BAD_POINT, "which?"), "bad-point"),
        ("b", KeyError("label"), "command-dropped"),
        ("c", ZeroDivisionError(), "command-dropped"),
        ("d", asyncio.CancelledError(), "command-dropped"),
    ):
        desk.fail = error  # type: ignore[assignment]
        desk.deliver(desk.command(id))
        await desk.rest()
        assert desk.finals(id)[0].code == code


async def test_more_commands_at_once_than_are_allowed_wait_outside(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    desk.hold.clear()
    commands = [desk.command(f"c{number}", Verb.SYNC) for number in range(RUNNING_MAX + 5)]
    for command in commands:
        desk.deliver(command)
    assert desk.ignored(Ignored.BUSY) == 5
    desk.hold.set()
    await desk.rest()
    for command in commands:  # who waits asks again
        desk.deliver(command)
    await desk.rest()
    assert set(desk.done.values()) == {1}
    assert len(desk.done) == len(commands)


@pytest.mark.fault(50)
@pytest.mark.fault(61)
async def test_what_was_forgotten_is_not_done_again_even_when_the_clock_jumps_back(tmp_path: Path) -> None:
    desk = await Desk(tmp_path, capacity=8).open()
    first = desk.command("first", seconds=10)
    desk.deliver(first)
    await desk.rest()
    desk.clock.advance(3600)
    for number in range(20):
        desk.deliver(desk.command(f"c{number}", seconds=1))
        await desk.rest()
        desk.clock.advance(2)
    assert desk.log.find("first") is None
    desk.clock.jump_wall(-7200)
    desk.deliver(first)
    await desk.rest()
    assert desk.done["first"] == 1
    assert desk.ignored(Ignored.FORGOTTEN) == 1
    await desk.crash()
    desk.deliver(first)
    await desk.rest()
    assert desk.done["first"] == 1


async def test_a_result_that_is_too_long_to_be_kept_is_a_failure(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    for id, verb, ok in (("kept", Verb.SYNC, False), ("looked", Verb.STATUS, True)):
        command = desk.command(id, verb)
        desk.result = {"text": "x" * 20_000}
        desk.deliver(command)
        await desk.rest()
        assert desk.finals(id)[0].ok is ok
        assert len(msgspec.json.encode(desk.finals(id)[0])) < (128 << 10)


async def test_a_flood_of_stale_commands_does_not_flood_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = await Desk(tmp_path).open()
    for number in range(1000):
        desk.deliver(desk.command(f"c{number}", seconds=-1))
    assert desk.ignored(Ignored.EXPIRED) == 1000
    assert len(caplog.records) == 1


async def test_a_full_memory_of_commands_still_in_time_takes_no_more(tmp_path: Path) -> None:
    desk = await Desk(tmp_path, capacity=4).open()
    for number in range(6):
        desk.deliver(desk.command(f"c{number}", seconds=60))
        await desk.rest()
    assert len(desk.done) == 4
    assert desk.ignored(Ignored.MEMORY) == 2
    desk.clock.advance(61)
    desk.deliver(desk.command("later", seconds=60))
    await desk.rest()
    assert desk.done["later"] == 1
    assert desk.path.stat().st_size < 10_000


async def test_a_disk_that_takes_nothing_keeps_once_only_commands_from_being_done(tmp_path: Path) -> None:
    desk = await Desk(tmp_path).open()
    desk.path.unlink()
    desk.path.mkdir()  # nothing can be written there, as root or not
    desk.deliver(desk.command("cut", Verb.CUT))
    desk.deliver(desk.command("sync", Verb.SYNC))
    await desk.rest()
    assert desk.done == {"sync": 1}
    assert desk.finals("cut")[0].code == "command-dropped"
    assert desk.finals("sync")[0].ok
    desk.path.rmdir()
    desk.deliver(desk.command("next", Verb.CUT))
    await desk.rest()
    assert desk.done["next"] == 1
    await desk.crash()
    assert desk.log.find("next") is not None


async def test_a_line_that_a_full_disk_tore_does_not_take_the_next_one_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = await Desk(tmp_path).open()

    def full(fd: int) -> None:
        os.truncate(desk.path, desk.path.stat().st_size - 5)
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patched:
        patched.setattr("drengine.control.command_log.os.fdatasync", full)
        desk.deliver(desk.command("torn", Verb.SYNC))
        await desk.rest()
    desk.deliver(desk.command("next", Verb.SYNC))
    await desk.rest()
    await desk.crash()
    assert desk.log.find("next") is not None
    assert desk.log.find("torn") is not None


@pytest.mark.fault(49)
@pytest.mark.parametrize("cut", range(0, 200, 7))
async def test_a_torn_last_line_costs_at_most_that_line(tmp_path: Path, cut: int) -> None:
    desk = await Desk(tmp_path).open()
    for id in ("a", "b"):
        desk.deliver(desk.command(id))
        await desk.rest()
    whole = desk.path.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    desk.path.write_bytes(whole[: max(last, len(whole) - cut)])
    await desk.crash()
    assert desk.log.find("a") is not None
    assert desk.log.find("b") is not None  # begun, at least: that line was synced before it was acted upon
    desk.deliver(desk.command("c"))
    await desk.rest()
    await desk.crash()
    assert desk.log.find("c") is not None


@pytest.mark.fault(49)
@pytest.mark.fault(50)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_happens_nothing_is_done_twice_and_no_answer_changes(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    asyncio.run(_storm(seed, tmp_path_factory.mktemp("storm")))


async def _storm(seed: int, directory: Path) -> None:
    """Deliveries of fresh and old copies, retained or not; crashes in the middle; clocks that run and jump."""
    choose = random.Random(seed)
    desk = await Desk(directory, capacity=6).open()
    sent: list[Command] = []
    for number in range(40):
        match choose.randrange(10):
            case 0 | 1 | 2 | 3:
                verb = choose.choice((Verb.CUT, Verb.CUT, Verb.SYNC, Verb.FENCE))
                sent.append(
                    desk.command(f"c{number}", verb, choose.choice((-1, 1, 20, 400)), choose.choice((2, 3, 3, 3, 4)))
                )
                desk.deliver(sent[-1], retained=choose.random() < 0.1)
            case 4 | 5 if sent:
                desk.deliver(choose.choice(sent))
            case 6:
                desk.hold = asyncio.Event()
                if choose.random() < 0.7:
                    desk.hold.set()
            case 7:
                desk.clock.advance(choose.choice((0.5, 5, 100)))
            case 8:
                desk.clock.jump_wall(choose.choice((-300, -5, 5, 300)))
            case 9:
                for _ in range(choose.randrange(8)):
                    await asyncio.sleep(0)
                await desk.crash()
        if choose.random() < 0.5:
            await desk.rest()
    desk.hold.set()
    await desk.crash()
    for command in sent:
        desk.deliver(command)
        await desk.rest()
    kinds = {command.id: command for command in sent}
    assert not desk.failures
    for id, count in desk.done.items():
        assert count == 1 or kinds[id].verb is not Verb.CUT, f"{id} was carried out {count} times"
        assert kinds[id].generation >= desk.generation
    for id in kinds:
        final = {(answer.ok, answer.code, str(answer.result)) for answer in desk.finals(id)}
        assert len(final) <= 1, f"{id} was answered differently: {final}"
