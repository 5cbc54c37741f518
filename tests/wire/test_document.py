"""docs/protocol.md says what the code does."""

from __future__ import annotations

import pytest

from drengine.wire import document
from drengine.wire.errors import REASONS
from drengine.wire.frames import FrameType


def test_the_page_is_current() -> None:
    page = document.PAGE.read_text(encoding="utf-8")
    assert document.rewritten(page) == page, "run: python -m drengine.wire.document"


def test_a_page_without_a_section_is_refused() -> None:
    page = document.PAGE.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="moves"):
        document.rewritten(page.replace("<!-- end: moves -->", ""))


def test_an_edited_section_is_written_anew() -> None:
    page = document.PAGE.read_text(encoding="utf-8")
    edited = page.replace("| 0 | u32 | magic |", "| 0 | u64 | magic |")
    assert edited != page
    assert document.rewritten(edited) == page


def test_every_frame_and_reason_is_on_the_page() -> None:
    page = document.PAGE.read_text(encoding="utf-8")
    for kind in FrameType:
        assert f"### {kind.value} {kind.name}" in page
    for reason in REASONS:
        assert f"`{reason}`" in page
