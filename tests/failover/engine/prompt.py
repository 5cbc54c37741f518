"""Commands typed at a prompt, with a store and a state directory of their own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drengine.cli.main import app
from drengine.model.clock import SystemClock
from drengine.ownership import make_directory
from drengine.people.accounts import Accounts, accounts_file
from drengine.people.door import FILE
from drengine.terminal import main
from tests.persons import EVERYBODY

RUNBOOK = """
version: 1
name: shop
sources:
  shop:
    launch:
      driver: command
      settings: {run: RUN, environment: {WHOSE: PLACE}}
    FENCE
waves:
  - name: all
    sources: [shop]
    BEFORE
"""
ASK = 'before: [{approval: {prompt: "really?", by: [ann, "role:admin"]}}]'


@dataclass
class Typed:
    """Commands typed at a prompt."""

    directory: Path
    capture: Any

    def book(self, *, run: str = "[sleep, '600']", fence: str = "fence: {command: ['true']}", before: str = "") -> str:
        text = RUNBOOK.replace("RUN", run).replace("FENCE", fence).replace("BEFORE", before)
        path = self.directory / "shop.yaml"
        path.write_text(text.replace("PLACE", str(self.directory)))
        return str(path)

    def asking(self) -> str:
        """A runbook that asks ann, who is there."""
        self.know("ann")
        return self.book(before=ASK)

    @property
    def accounts(self) -> Accounts:
        make_directory(self.directory / "state")
        return Accounts(accounts_file(self.directory / "state" / FILE), SystemClock())

    def know(self, name: str) -> str:
        """There is such an account; nobody begins what nobody may approve."""
        if not self.accounts.find(name):
            self.accounts.add(name, tuple(next(each.roles for each in EVERYBODY if each.name == name)))
        return name

    @contextmanager
    def acting_as(self, name: str) -> Iterator[None]:
        """As somebody who has an account; empty: as the user whom the kernel knows."""
        token = self.accounts.issue(self.know(name), 3600)[1] if name else ""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DRENGINE_TOKEN", token)
            yield

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        given = ["--store", str(self.directory / "store"), "--state", str(self.directory / "state")]
        if argv[0] not in ("runs", "approve", "commit") and argv[:2] != ("run", "show"):
            given += ["--export", f"unix:{self.directory / 'nbd.sock'}"]
        code = main(app, [*argv, *given])
        out, err = self.capture.readouterr()
        return code, out, err

    def json(self, *argv: str) -> tuple[int, Any]:
        code, out, err = self(*argv, "--json")
        return code, json.loads((out or err).strip().splitlines()[-1])


def marked(typed: Typed) -> dict[str, str]:
    """Everything that is started carries a mark by which it is found in the end."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WHOSE": str(typed.directory)}
