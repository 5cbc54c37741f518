"""The tokens of whoever types: what `drengine login` got, in a file that only he can read."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from drengine.durable import replace_durably
from drengine.model.errors import DrengineError
from drengine.people.errors import ACCOUNTS_UNUSABLE


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """A token for one orchestrator."""

    name: str
    token: str
    expires_ns: int


class Logins:
    """Logins by place: the orchestrator's URL or its state directory."""

    def __init__(self, file: Path | None = None) -> None:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
        self._file = file or Path(state) / "drengine" / "logins.json"

    def find(self, place: str) -> Login | None:
        """The login for a place.

        Raises:
            DrengineError: ACCOUNTS_UNUSABLE.
        """
        return self._read().get(place)

    def keep(self, place: str, login: Login) -> None:
        """Keep a login, instead of an earlier one.

        Raises:
            DrengineError: ACCOUNTS_UNUSABLE.
        """
        self._write({**self._read(), place: login})

    def forget(self, place: str) -> Login | None:
        """Forget a login; gives what it was.

        Raises:
            DrengineError: ACCOUNTS_UNUSABLE.
        """
        kept = self._read()
        if found := kept.pop(place, None):
            self._write(kept)
        return found

    def _read(self) -> dict[str, Login]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, Login])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            raise DrengineError(ACCOUNTS_UNUSABLE, f"{self._file}: {error}", hint=_HINT) from error

    def _write(self, kept: dict[str, Login]) -> None:
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_durably(self._file, msgspec.json.encode(kept))
        except OSError as error:
            raise DrengineError(ACCOUNTS_UNUSABLE, f"{self._file}: {error.strerror}", hint=_HINT) from error


_HINT = "Remove the file and sign in again with `drengine login NAME`."
