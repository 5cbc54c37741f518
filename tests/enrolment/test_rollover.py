"""One CA replaces another while everybody goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cryptography import x509

from drengine.enrolment.client import enrol, renew
from drengine.enrolment.keeper import keeping
from drengine.enrolment.rollover import Step, take_step
from drengine.identity.authority import Authority
from drengine.identity.errors import EnrolmentError
from drengine.identity.names import Role
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from tests.clock import ManualClock
from tests.enrolment.site import serving, until
from tests.enrolment.test_keeping import tls
from tests.identity.test_authority import copy_of, crashes
from tests.target.agent import running
from tests.target.test_revocation import joined

pytestmark = pytest.mark.timeout(120)


def step(folder: Path, *, force: bool = False) -> Step:
    return take_step(Authority(folder), now=time.time(), force=force, seconds=86400)


async def test_parties_go_over_to_the_next_ca_without_a_broken_session(tmp_path: Path) -> None:
    async with serving(tmp_path) as site:
        outpost = await site.joined("outpost", Role.TARGET, hosts=("127.0.0.1",))
        shop = await site.joined("shop")
        old_token = site.invitation()
        async with (
            running(tmp_path / "store", tls=tls(outpost)) as target,
            keeping([shop.files], SystemClock()),
        ):
            session = await joined(target, shop.files, "shop")
            await session.declare()
            assert step(site.authority.folder).name == "begun"
            await until(lambda: shop.authorities().count("BEGIN") == outpost.authorities().count("BEGIN") == 2)
            await until(lambda: has_switched(site.authority.folder), 40)
            with pytest.raises(DrengineError, match="certificates of the old CA"):
                step(site.authority.folder)
            for place in (shop, outpost):
                await renew(place, clock=SystemClock())
            target.daemon.reload()
            later = await joined(target, shop.files, "shop")  # both sides with certificates of the next CA
            assert later.welcome is not None
            own = site.place("ca/authority")
            await until(lambda: own.certificate().issuer == site.authority.issuing.certificate.subject)
            with pytest.raises((EnrolmentError, DrengineError)):
                await enrol(old_token, "mill", site.place("mill"))
            await site.joined("mill")
            for each in site.authority.entries():
                if each.issuer == "ca.key":
                    site.authority.revoke(serial=each.serial)
            assert step(site.authority.folder).name == "retired"
            await until(lambda: shop.authorities().count("BEGIN") == outpost.authorities().count("BEGIN") == 1)
            assert not (site.authority.folder / "ca.key").exists()
            await site.joined("last")
    assert Authority(tmp_path / "ca").issuing.path.name == "ca-2.key"


def has_switched(folder: Path) -> bool:
    """Whether the step could be taken: the authority writes it down within seconds who has heard of the next CA."""
    try:
        return step(folder).name == "switched"
    except DrengineError as error:
        assert "have not heard" in error.message
        return False


async def test_nobody_is_left_behind_unless_it_is_forced(tmp_path: Path) -> None:
    async with serving(tmp_path) as site:
        await site.joined("shop")
        step(site.authority.folder)
        with pytest.raises(DrengineError, match="agent/shop have not heard"):
            step(site.authority.folder)
        assert step(site.authority.folder, force=True).not_ready == ("drengine://main/agent/shop",)


def test_a_killed_step_is_done_or_can_be_done_again(tmp_path: Path) -> None:
    made = Authority.create(tmp_path / "made", "main")
    made.write_crl()

    def all_steps(folder: Path) -> None:
        authority = Authority(folder)
        authority.begin_rollover()
        authority.switch()
        authority.retire()

    states = set()
    for folder in crashes(tmp_path, copy_of(made.folder), all_steps):
        authority = Authority(folder)
        index = authority.index()
        states.add((index.issuing, index.trusted))
        trusted = x509.load_pem_x509_certificates(authority.certificate)
        assert len(trusted) == len(index.trusted)
        lists = authority.write_crl().count(b"BEGIN X509 CRL")
        assert lists == len(index.trusted)
        assert (folder / "ca.pem").read_bytes() == authority.certificate
        while len(authority.index().trusted) != 1 or authority.index().issuing == "ca.key":
            take_step(authority, now=time.time(), force=True, seconds=86400)
        assert authority.index().trusted == ("ca-2.key",)
    assert states == {
        ("ca.key", ("ca.key",)),
        ("ca.key", ("ca.key", "ca-2.key")),
        ("ca-2.key", ("ca.key", "ca-2.key")),
        ("ca-2.key", ("ca-2.key",)),
    }


def test_an_index_of_before_is_read(tmp_path: Path) -> None:
    """Version 1 had one CA and no tokens."""
    folder = tmp_path / "ca"
    authority = Authority.create(folder, "main", clock=ManualClock(time.time_ns()))
    (folder / "index.json").write_text('{"version": 1, "site": "main", "crl_number": 3, "entries": []}')
    authority.create_token(Role.AGENT, "shop", seconds=60)
    assert (authority.index().version, authority.index().crl_number) == (2, 3)
