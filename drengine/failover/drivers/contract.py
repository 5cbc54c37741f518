"""What every launch driver must do, as a test class: a third-party driver subclasses it in its own tests.

    class TestMine(LaunchDriverContract):
        def driver(self): return MyDriver()
        def request(self, directory): return LaunchRequest(..., directory=directory)

Run with pytest; `request` describes a workload that becomes healthy within `timeout_seconds`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

from drengine.failover.drivers.driver import LaunchDriver, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.model.errors import DrengineError


def _quiet(_: str) -> None:
    """Progress that nobody reads."""


class LaunchDriverContract(ABC):
    """The contract. Each test ends what it started."""

    @abstractmethod
    def driver(self) -> LaunchDriver:
        """A fresh driver object: it must find instances that another object started."""

    @abstractmethod
    def request(self, directory: Path) -> LaunchRequest:
        """A workload that becomes healthy."""

    def failing(self, directory: Path) -> LaunchRequest | None:
        """One that never does (with a short timeout), or None."""
        return None

    def test_a_launch_is_running_and_healthy_and_gone_after_stop(self, tmp_path: Path) -> None:
        request = self.request(tmp_path / "i")
        assert not self.driver().inspect(request).running
        try:
            found = self.driver().launch(request, _quiet)
            assert (found.instance, found.running, found.healthy) == (request.instance, True, True)
            assert self.driver().inspect(request).running
        finally:
            self.driver().stop(request)
        assert not self.driver().inspect(request).running
        assert not request.directory.exists() or not any(request.directory.iterdir()), "something was left behind"

    def test_launching_twice_starts_one_workload(self, tmp_path: Path) -> None:
        request = self.request(tmp_path / "i")
        try:
            first = self.driver().launch(request, _quiet)
            again = self.driver().launch(request, _quiet)
            assert dict(first.details).get("pids") == dict(again.details).get("pids")
        finally:
            self.driver().stop(request)

    def test_stopping_what_never_ran_is_no_error(self, tmp_path: Path) -> None:
        request = self.request(tmp_path / "i")
        self.driver().stop(request)
        self.driver().stop(request)

    def test_quiesced_it_writes_no_more_and_can_be_launched_again(self, tmp_path: Path) -> None:
        request = self.request(tmp_path / "i")
        try:
            self.driver().launch(request, _quiet)
            self.driver().quiesce(request)
            self.driver().quiesce(request)
            assert self.driver().launch(request, _quiet).healthy
        finally:
            self.driver().stop(request)

    def test_two_instances_do_not_know_of_each_other(self, tmp_path: Path) -> None:
        one = self.request(tmp_path / "one")
        other = replace(one, instance=one.instance + "-other", directory=tmp_path / "other")
        try:
            self.driver().launch(one, _quiet)
            assert not self.driver().inspect(other).running
            self.driver().stop(other)
            assert self.driver().inspect(one).running
        finally:
            self.driver().stop(one)

    def test_what_never_gets_healthy_fails_with_an_id_and_can_be_stopped(self, tmp_path: Path) -> None:
        request = self.failing(tmp_path / "i")
        if request is None:
            return
        failures: list[DrengineError] = []

        def launch() -> None:
            try:
                self.driver().launch(request, _quiet)
            except DrengineError as error:
                failures.append(error)

        thread = threading.Thread(target=launch)
        thread.start()
        thread.join(request.timeout_seconds + 30)
        try:
            assert not thread.is_alive(), "launch does not end after its timeout"
            assert [failure.kind for failure in failures] == [LAUNCH_FAILED]
        finally:
            self.driver().stop(request)
        assert not self.driver().inspect(request).running

    def test_unknown_settings_are_refused_before_anything_starts(self, tmp_path: Path) -> None:
        request = self.request(tmp_path / "i")
        try:
            self.driver().check_settings({**request.settings, "no_such_setting": 1})
        except DrengineError as error:
            assert error.kind is LAUNCH_SETTINGS
            assert "no_such_setting" in error.message
        else:
            raise AssertionError("unknown settings were taken")
