"""The authority hands out the one-file agent: the right bytes to whoever asks, and none that were not named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from drengine.enrolment.client import agent_offered, fetch_agent
from drengine.enrolment.handout import Handout, remembered_agent
from drengine.enrolment.messages import AgentAnswer
from drengine.identity.authority import Authority
from drengine.identity.errors import EnrolmentError
from drengine.transport.errors import TransportError
from tests.enrolment.site import serving, until


def agent_file(path: Path, version: str, content: bytes = b"") -> AgentAnswer:
    """Something that begins as a one-file agent does; replaced as a package manager does it."""
    whole = f"#!/bin/sh\n# drengine-agent {version}: one file\n".encode() + content
    path.with_suffix(".new").write_bytes(whole)
    path.with_suffix(".new").replace(path)
    return AgentAnswer(version, hashlib.sha256(whole).hexdigest(), len(whole))


async def test_a_party_fetches_the_agent_that_is_offered(tmp_path: Path) -> None:
    made = agent_file(tmp_path / "agent", "1.2", bytes(range(256)) * 40_000)
    async with serving(tmp_path, agent=tmp_path / "agent") as site:
        assert remembered_agent(site.authority.folder) == made
        place = await site.joined("shop")
        offered = await agent_offered(place)
        assert offered == made
        await fetch_agent(place, offered, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == (tmp_path / "agent").read_bytes()
    assert (tmp_path / "got").stat().st_mode & 0o777 == 0o755


async def test_another_file_than_the_named_one_is_not_kept(tmp_path: Path) -> None:
    before = agent_file(tmp_path / "agent", "1", b"x" * 1000)
    async with serving(tmp_path, agent=tmp_path / "agent") as site:
        place = await site.joined("shop")
        after = agent_file(tmp_path / "agent", "2", b"y" * 1000)
        await until(lambda: remembered_agent(site.authority.folder) == after)
        with pytest.raises(EnrolmentError) as refused:
            await fetch_agent(place, before, tmp_path / "got")
        assert refused.value.reason == "agent-other"
        with pytest.raises(EnrolmentError) as refused:  # what is larger than was said is not even read
            await fetch_agent(place, AgentAnswer("2", after.sha256, -4000), tmp_path / "got")
        assert refused.value.reason == "answer-malformed"
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("name", ["absent", "notes"])
async def test_an_authority_without_an_agent_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes").write_text("# not an agent")
    async with serving(tmp_path, agent=tmp_path / name) as site:
        assert remembered_agent(site.authority.folder) is None
        with pytest.raises(EnrolmentError) as refused:
            await agent_offered(await site.joined("shop"))
        assert refused.value.reason == "agent-missing"


async def test_an_authority_of_another_site_is_not_believed(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    made = agent_file(tmp_path / "agent", "1")
    async with serving(tmp_path / "one", agent=tmp_path / "agent") as one:
        place = await one.joined("shop")
    async with serving(tmp_path / "other", agent=tmp_path / "agent", port=one.address.port):
        with pytest.raises(TransportError):
            await fetch_agent(place, made, tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_a_replaced_file_is_looked_at_once(tmp_path: Path) -> None:
    Authority.create(tmp_path / "ca", "main")
    first = agent_file(tmp_path / "agent", "1")
    handout = Handout(tmp_path / "agent", tmp_path / "ca")
    handout.look()
    assert handout.agent == first
    (tmp_path / "agent").unlink()
    handout.look()
    assert handout.agent is None and remembered_agent(tmp_path / "ca") is None
