"""Labels of a run's branches: the texts that stores of version 1 hold, and back."""

from __future__ import annotations

import pytest

from drengine.failover.labels import Purpose, RunLabel

RUN = "20261123T081500-shop-4f2a"


@pytest.mark.parametrize(
    ("text", "purpose"),
    [
        (f"run:{RUN}", Purpose.RECOVERY),
        (f"run:{RUN}:back", Purpose.RETURN),
        (f"run:{RUN}:divergent", Purpose.DIVERGENT),
    ],
)
def test_a_label_is_written_as_it_ever_was_and_read_back(text: str, purpose: Purpose) -> None:
    assert str(RunLabel(RUN, purpose)) == text
    assert RunLabel.parse(text) == RunLabel(RUN, purpose)


@pytest.mark.parametrize("text", ["", "nightly", "run:", "run:a:b:c", f"run:{RUN}:elsewhere", f"run:{RUN}:", "xrun:a"])
def test_what_no_run_wrote_is_no_label_of_a_run(text: str) -> None:
    assert RunLabel.parse(text) is None
