"""Tokens of another provider: its own and for us, or refused."""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc.jwk import ECKey

from drengine.cli.main import app
from drengine.cli.people.browser import sign_in
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.people.door import Door
from drengine.people.errors import NOT_SIGNED_IN, PROVIDER_UNUSABLE
from drengine.people.oidc import OidcOptions
from drengine.people.provider import ASK_SECONDS
from drengine.people.roles import Person, Role
from drengine.terminal import main
from tests.clock import ManualClock
from tests.people.provider import CLIENT, Provider, provided

ROLES = {"dr-approvers": "approver", "dr-operators": "operator"}


@pytest.fixture
def provider() -> Iterator[Provider]:
    with provided() as made:
        yield made


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(time.time_ns())


@pytest.fixture
def door(tmp_path: Path, provider: Provider, clock: ManualClock) -> Door:
    return Door.of(tmp_path / "state", clock, OidcOptions(issuer=provider.issuer, client=CLIENT, roles=ROLES))


def refused(door: Door, token: str) -> str:
    with pytest.raises(DrengineError) as caught:
        door.by_bearer(token)
    return caught.value.kind.id


def test_a_token_of_the_provider_is_a_person_with_the_roles_of_his_groups(door: Door, provider: Provider) -> None:
    ann = Person("ann", f"oidc:{provider.issuer}", frozenset({Role.APPROVER}))
    assert door.by_bearer(provider.token()) == ann
    groups = ["dr-operators", "dr-approvers", "others", 5]
    assert door.by_bearer(provider.token(groups=groups, aud=["x", CLIENT])).roles == {Role.APPROVER, Role.OPERATOR}
    assert door.by_bearer(provider.token(groups=None)).roles == frozenset()
    assert provider.asked == ["/.well-known/openid-configuration", "/keys"], "its keys are remembered"
    _, text = door.accounts.issue(door.accounts.add("bob", (Role.VIEWER,)).name, 60.0)
    assert door.by_bearer(text).name == "bob", "our own accounts go on"


def altered(token: str, **claims: object) -> str:
    header, payload, signature = token.split(".")
    held = json.loads(base64.urlsafe_b64decode(payload + "==")) | claims
    return f"{header}.{base64.urlsafe_b64encode(json.dumps(held).encode()).rstrip(b'=').decode()}.{signature}"


def unsigned(provider: Provider) -> str:
    parts = [{"alg": "none"}, provider.claims()]
    return ".".join(base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=").decode() for each in parts) + "."


BAD: dict[str, Callable[[Provider], str]] = {
    "altered": lambda p: altered(p.token(), preferred_username="root2"),
    "unsigned": unsigned,
    "signed by the public key as a secret": lambda p: p.with_public_key_as_secret(),
    "signed by a stranger": lambda p: p.token(ECKey.generate_key("P-256", {"kid": "one"})),
    "over": lambda p: p.token(exp=int(time.time()) - 120),
    "without an end": lambda p: p.token(exp=None),
    "not yet": lambda p: p.token(nbf=int(time.time()) + 3600),
    "for another": lambda p: p.token(aud="payroll"),
    "for nobody": lambda p: p.token(aud=None),
    "given to another": lambda p: p.token(aud=[CLIENT, "payroll"], azp="payroll"),
    "of another issuer": lambda p: p.token(iss="https://evil.example"),
    "of nobody": lambda p: p.token(preferred_username=""),
    "of no name": lambda p: p.token(preferred_username=["ann"]),
    "of the scheduler": lambda p: p.token(preferred_username="schedule"),
    "of root": lambda p: p.token(preferred_username="root"),
    "with an escape": lambda p: p.token(preferred_username="ann\x1b[2J"),
    "with a space": lambda p: p.token(preferred_username="ann "),
    "no token": lambda p: "x",
    "dots": lambda p: "..",
    "long": lambda p: "x" * 100_000,
    "deep": lambda p: "eyJ" + "[" * 10_000 + ".a.b",
}


@pytest.mark.parametrize("name", BAD)
def test_what_the_provider_did_not_give_to_us_is_refused(name: str, door: Door, provider: Provider) -> None:
    assert refused(door, BAD[name](provider)) == NOT_SIGNED_IN.id


def test_new_keys_are_found_and_strangers_make_nobody_ask_for_them_all_the_time(
    door: Door, provider: Provider, clock: ManualClock
) -> None:
    assert door.by_bearer(provider.token()).name == "ann"
    provider.rotate()
    fresh = provider.token(header={"kid": "two"})
    assert refused(door, fresh) == NOT_SIGNED_IN.id, "it was asked just now"
    clock.advance(ASK_SECONDS)
    assert door.by_bearer(fresh).name == "ann"
    asked = len(provider.asked)
    for _ in range(50):
        refused(door, provider.token(ECKey.generate_key("P-256"), {"kid": "stranger"}))
    assert len(provider.asked) == asked


def test_a_provider_that_is_away_is_told_and_known_keys_go_on(tmp_path: Path, clock: ManualClock) -> None:
    with provided() as provider:
        options = OidcOptions(issuer=provider.issuer, client=CLIENT, roles=ROLES)
        door, late = (Door.of(tmp_path / name, clock, options) for name in ("one", "two"))
        token = provider.token()
        assert door.by_bearer(token).name == "ann"
    assert refused(late, token) == PROVIDER_UNUSABLE.id
    clock.advance(120.0)
    assert door.by_bearer(token).name == "ann"


def test_a_provider_that_hangs_holds_up_nobody(
    tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers who show tokens would otherwise take every thread, and with them the runs of the same process."""
    door = Door.of(tmp_path / "state", SystemClock(), OidcOptions(issuer=provider.issuer, client=CLIENT, roles=ROLES))
    asked, over, answer = threading.Event(), threading.Event(), provider.answer

    def hang(path: str, form: dict[str, str]) -> tuple[int, dict[str, object] | str]:
        asked.set()
        over.wait(60)
        return answer(path, form)

    monkeypatch.setattr(provider, "answer", hang)
    first = threading.Thread(target=refused, args=(door, "x.y.z"))
    first.start()
    try:
        assert asked.wait(30)
        before = time.monotonic()
        assert [refused(door, "x.y.z") for _ in range(20)] == [PROVIDER_UNUSABLE.id] * 20
        assert first.is_alive(), "it still waits, and nobody else did"
        assert time.monotonic() - before < 4.0
    finally:
        over.set()
        first.join(30)


@pytest.mark.parametrize("issuer", ["http://192.0.2.1", "ftp://x", "https://127.0.0.1:1", "nonsense"])
def test_a_provider_beyond_loopback_is_asked_by_tls_only(issuer: str, tmp_path: Path, provider: Provider) -> None:
    door = Door.of(tmp_path / "state", SystemClock(), OidcOptions(issuer=issuer, client=CLIENT))
    assert refused(door, provider.token()) == PROVIDER_UNUSABLE.id


@pytest.mark.parametrize("how", ["a token of another sign-in", "a stranger on the port first"])
def test_a_sign_in_takes_only_its_own_token(how: str, provider: Provider) -> None:
    provider.swaps = how == "a token of another sign-in"

    def browse(url: str) -> None:
        back = parse_qs(urlsplit(url).query)["redirect_uri"][0]

        def ask() -> None:
            for each in (f"{back}?code=x&state=%C3%A9", f"{back}?code=x", url):
                urllib.request.urlopen(each, timeout=30).read()

        threading.Thread(target=ask).start()

    if provider.swaps:
        with pytest.raises(DrengineError, match="for another sign-in"):
            sign_in(provider.issuer, CLIENT, None, browse)
    else:
        assert sign_in(provider.issuer, CLIENT, None, browse)[0].count(".") == 2


def test_a_person_signs_in_with_a_browser_and_a_command_acts_as_him(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DRENGINE_URL", raising=False)
    file = tmp_path / "orchestrator.toml"
    file.write_text(
        f'store = "/"\nstate = "{tmp_path}/state"\n[oidc]\nissuer = "{provider.issuer}"\nclient = "{CLIENT}"\n'
        'roles = {dr-approvers = "approver"}\n'
    )

    def browse(url: str) -> None:
        threading.Thread(target=lambda: urllib.request.urlopen(url, timeout=30).read()).start()

    monkeypatch.setattr("drengine.cli.people.login.note", lambda text: browse(text.removeprefix("open ")))
    assert main(app, ["login", "--browser", "--config", str(file)]) == 0
    assert "signed in as ann" in capsys.readouterr().out
    kept = json.loads((tmp_path / "home/drengine/logins.json").read_text())
    (login,) = kept.values()
    assert login["name"] == "ann" and login["token"].count(".") == 2
    assert provider.asked.count("/token") == 1
