"""The end of an installation: it says well only what the agent itself says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.model.errors import DrengineError
from drengine_agent.errors import AGENT_NOT_RUNNING, SESSION_MISSING
from drengine_agent.install import session

STANDING = {"reason": "none", "detail": "", "hint": "", "has_point": False, "sweep_scanned_bytes": 0, "sweep_bytes": 0}
Says = Callable[..., None]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Says:
    """What the agent answers, one look after the other, the last for ever; each look takes a second."""
    now = [0.0]

    def sleep(_: float) -> None:
        now[0] += 1.0

    def set_up(*answers: dict[str, Any] | None) -> None:
        left: Iterator[dict[str, Any] | None] = iter(answers)

        def ask(_: Path, command: str) -> dict[str, Any]:
            assert command == "status"
            found = next(left, answers[-1])
            if found is None:
                raise DrengineError(AGENT_NOT_RUNNING, "no socket")
            return {**STANDING, **found}

        monkeypatch.setattr(session, "ask", ask)
        monkeypatch.setattr(session.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(session.time, "sleep", sleep)

    return set_up


def missing(seconds: float = 10.0) -> DrengineError:
    with pytest.raises(DrengineError) as refused:
        session.await_session(Path("/none"), seconds)
    assert refused.value.kind is SESSION_MISSING
    return refused.value


def test_it_waits_for_the_first_point(says: Says, capsys: pytest.CaptureFixture[str]) -> None:
    says(None, {"state": "DISCONNECTED"}, {"state": "INITIAL_SYNC"}, {"state": "CONTINUOUS", "has_point": True})
    session.await_session(Path("/none"), 10.0)
    assert "first recovery point is durable" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["INITIAL_SYNC", "RESCAN", "BACKLOG"])
def test_a_long_copy_is_no_failure(says: Says, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    says({"state": state, "sweep_scanned_bytes": 1 << 30, "sweep_bytes": 1 << 40})
    session.await_session(Path("/none"), 10.0)
    assert "1.0 GiB of 1.0 TiB" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["DISCONNECTED", "STALLED", "INITIATING"])
def test_whatever_is_no_session_at_the_end_is_told_with_the_agents_own_reason(says: Says, state: str) -> None:
    says({"state": state, "reason": "tls-failed", "detail": "the certificate has expired", "hint": "Renew it."})
    error = missing()
    assert f"{state} (tls-failed): the certificate has expired" in error.message
    assert error.hint.startswith("Renew it.")


def test_one_that_an_operator_paused_is_left_so(says: Says, capsys: pytest.CaptureFixture[str]) -> None:
    says({"state": "PAUSED", "reason": "operator"})
    session.await_session(Path("/none"), 10.0)
    assert "drengine-agent resume" in capsys.readouterr().err


def test_an_agent_that_has_stopped_is_not_waited_for(says: Says) -> None:
    says({"state": "STOPPED", "reason": "fenced", "hint": "Look."}, {"state": "CONTINUOUS", "has_point": True})
    assert "STOPPED (fenced)" in missing().message


def test_an_agent_that_never_answers_is_a_failure(says: Says) -> None:
    says(None)
    assert "journalctl" in missing().hint
