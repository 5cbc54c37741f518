"""Notices, delivered to a real HTTP receiver by Apprise; whoever tells never waits for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from drengine.config import parse
from drengine.failover.decide import Action, Decision, Reason
from drengine.failover.run import Outcome, RunRecord, RunState
from drengine.failover.runbook.values import Mode
from drengine.failover.snapshot import Snapshot
from drengine.failover.telling import telling
from drengine.model.errors import DrengineError
from drengine.notifications import Notice, NotificationOptions, Notifier, Topic, open_notifier
from drengine.notifications.notifier import QUEUED_MAX

NOTICE = Notice(Topic.FAILED, "failover of shop has stopped: step-failed", "Run r1")


@dataclass
class Receiver:
    """What was posted to it; `status` is its answer."""

    port: int = 0
    status: int = 200
    bodies: list[dict[str, Any]] = field(default_factory=list)
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            receiver.bodies.append(json.loads(self.rfile.read(length)))
            self.send_response(receiver.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            receiver.came.release()

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def options(*to: str, **more: Any) -> NotificationOptions:
    return parse(NotificationOptions, {"to": list(to), **more})


def test_a_notice_arrives_by_a_url_that_only_a_file_holds(tmp_path: Path) -> None:
    with receiving() as receiver:
        (tmp_path / "url").write_text(f"json://user:s3cret@127.0.0.1:{receiver.port}/hook\n")
        notifier = open_notifier(options(f"${{file:{tmp_path}/url}}"), strict=True)
        notifier.notify(NOTICE)
        assert receiver.came.acquire(timeout=30)
        notifier.close()
    assert receiver.bodies[0]["title"] == NOTICE.title
    assert receiver.bodies[0]["message"] == NOTICE.text
    assert receiver.bodies[0]["type"] == "failure"
    assert notifier.counts == {"sent": 1}


def test_a_place_that_refuses_is_tried_a_few_times_and_counted_and_others_get_theirs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with receiving() as bad, receiving() as good:
        bad.status = 500
        given = options(f"json://127.0.0.1:{bad.port}", f"json://127.0.0.1:{good.port}", tries=2)
        places = open_notifier(given)._places
        notifier = Notifier(places, frozenset(given.about), given.tries, again_seconds=0)
        notifier.notify(NOTICE)
        assert good.came.acquire(timeout=30)
        notifier.close()
        assert len(bad.bodies) == 2
    assert notifier.counts == {"failed": 1, "sent": 1}
    assert "a notice was not taken by json (1)" in caplog.text


def test_nobody_waits_for_a_place_that_never_answers_and_what_can_not_be_queued_is_dropped() -> None:
    stuck, begun = threading.Event(), threading.Event()

    def send(notice: Notice) -> bool:
        begun.set()
        return stuck.wait(60)

    notifier = Notifier({"stuck": send}, frozenset({Topic.FAILED}), 1)
    notifier.notify(NOTICE)
    assert begun.wait(30)
    for _ in range(QUEUED_MAX + 3):
        notifier.notify(NOTICE)  # returns at once, or this test hangs
    assert notifier.counts == {"dropped": 3}
    notifier.close(seconds=0)
    stuck.set()


def test_only_what_was_chosen_is_told_and_a_trial_always() -> None:
    sent: list[Notice] = []
    notifier = Notifier({"list": lambda notice: not sent.append(notice)}, frozenset({Topic.WAITING}), 1)
    for topic in Topic:
        notifier.notify(Notice(topic, topic.value))
    notifier.close()
    assert [notice.topic for notice in sent] == [Topic.WAITING, Topic.TEST]


def test_a_client_that_raises_ends_nothing() -> None:
    def send(notice: Notice) -> bool:
        raise RuntimeError("a service's client has a defect")

    notifier = Notifier({"broken": send}, frozenset({Topic.FAILED}), 1)
    notifier.notify(NOTICE)
    notifier.close()
    assert notifier.counts == {"failed": 1}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"to": ["slack://a/b/c"]}, "refer to it"),
        ({"to": ["json://user:pass@host"]}, "refer to it"),
        ({"about": ["everything"]}, "is none of waiting"),
        ({"tries": 0}, "1 to 10"),
        ({"timeout": "10m"}, "1s to 60s"),
    ],
)
def test_bad_options_are_told(given: dict[str, Any], told: str) -> None:
    with pytest.raises(DrengineError, match=told):
        parse(NotificationOptions, given)


def test_what_can_not_be_used_is_an_error_when_checked_and_a_line_in_the_log_when_recovering(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for url, told in (("${env:DRENGINE_NO_SUCH}", "no DRENGINE_NO_SUCH"), ("json://", "no Apprise URL")):
        with pytest.raises(DrengineError, match=told):
            open_notifier(options(url), strict=True)
        open_notifier(options(url)).notify(NOTICE)
        assert told in caplog.text


def test_a_missing_extra_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DrengineError, match="extra") as caught:
        open_notifier(options("json://127.0.0.1"), strict=True)
    assert "drengine[notifications]" in caught.value.hint


@pytest.mark.parametrize(
    ("action", "state", "outcome", "topic"),
    [
        (Action.STOP, RunState.STOPPED, Outcome.BLOCKED, Topic.BLOCKED),
        (Action.STOP, RunState.STOPPED, Outcome.FAILED, Topic.FAILED),
        (Action.FINISH, RunState.FINISHED, Outcome.FAILED, Topic.FAILED),
        (Action.FINISH, RunState.FINISHED, Outcome.HANDED_BACK, Topic.FAILED),  # nothing serves before somebody acts
        (Action.FINISH, RunState.FINISHED, Outcome.ROLLED_BACK, Topic.ENDED),
        (Action.FINISH, RunState.FINISHED, Outcome.COMPLETED, Topic.ENDED),
        (Action.STOP, RunState.RUNNING, Outcome.NONE, None),  # decided, and not yet so
        (Action.START, RunState.RUNNING, Outcome.NONE, None),
    ],
)
def test_a_run_is_told_once_when_a_person_has_to_act_or_it_is_over(
    action: Action, state: RunState, outcome: Outcome, topic: Topic | None
) -> None:
    sent: list[Notice] = []
    notifier = Notifier({"list": lambda notice: not sent.append(notice)}, frozenset(Topic), 1)
    watch = telling(notifier, lambda run, snapshot, decision: None)
    run = RunRecord("r1", Mode.FAILOVER, "shop", "v", ("shop",), "ann", 0, state=state, outcome=outcome, reason="why")
    for _ in range(2):
        watch(run, Snapshot(()), Decision(action, Reason.READY, outcome=outcome))
    notifier.close()
    assert [notice.topic for notice in sent] == ([topic] if topic else [])
    assert all("drengine run show r1" in notice.text for notice in sent)
