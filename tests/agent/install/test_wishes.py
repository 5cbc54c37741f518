"""What an installation is asked for becomes configuration, or is refused."""

from __future__ import annotations

import pytest

from drengine.config import BAD_CONFIG
from drengine.model.errors import DrengineError
from drengine_agent.install import wishes
from drengine_agent.install.wishes import Wishes


def test_all_disks_of_a_server_without_any_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wishes, "mounted_disks", list)
    asked = Wishes(source="shop", target="outpost:7440", all_disks=True)
    with pytest.raises(DrengineError) as refused:
        asked.values({}, is_enrolled=True)
    assert refused.value.kind is BAD_CONFIG
    assert "--volume" in refused.value.hint
