"""Accounts and tokens: who holds a secret is somebody, until it is over or taken back, and nobody else is."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from drengine.audit.verify import read_entries
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.people.accounts import Accounts, accounts_file
from drengine.people.door import FILE, Door
from drengine.people.errors import ACCOUNTS_UNUSABLE, BAD_ACCOUNT, NOT_SIGNED_IN, SIGN_IN_FAILED, SIGN_IN_LIMIT
from drengine.people.passwords import ACCOUNT_FAILURES, FORGIVE_SECONDS, PEER_FAILURES, PEERS_MAX, hash_password
from drengine.people.roles import NOBODY, TABLE, Action, Person, Role, permit
from tests.clock import ManualClock

PASSWORD = "correct horse battery"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(10**18)


@pytest.fixture
def door(tmp_path: Path, clock: ManualClock) -> Door:
    made = Door.of(tmp_path / "state", clock)
    made.accounts.add("ann", (Role.APPROVER, Role.VIEWER), hash_password(PASSWORD))
    return made


def refusal(call: object) -> str:
    with pytest.raises(DrengineError) as caught:
        call()  # type: ignore[operator]
    return caught.value.kind.id


def test_a_token_is_its_account_until_it_is_over_or_revoked(door: Door, clock: ManualClock) -> None:
    token, text = door.sign_in("ann", PASSWORD, "unix", 60.0)
    person = door.by_bearer(text)
    assert person == Person("ann", f"login:{token.id}", frozenset({Role.VIEWER, Role.APPROVER}))
    door.accounts.change("ann", roles=(Role.OPERATOR,))
    assert door.by_bearer(text).roles == {Role.OPERATOR}, "a change counts at once"
    clock.advance(59.0)
    assert door.by_bearer(text).name == "ann"
    clock.advance(1.0)
    assert refusal(lambda: door.by_bearer(text)) == NOT_SIGNED_IN.id
    for end in (
        door.sign_out,
        lambda person: door.accounts.change("ann", password=hash_password(PASSWORD)),
        lambda person: door.accounts.remove("ann"),
    ):
        _, text = door.accounts.issue("ann", 60.0)
        end(door.by_bearer(text))
        assert refusal(lambda text=text: door.by_bearer(text)) == NOT_SIGNED_IN.id


def test_tokens_of_programs_outlive_a_new_password(door: Door) -> None:
    _, text = door.accounts.issue("ann", 60.0, machine=True)
    door.accounts.change("ann", password=hash_password("another long password"))
    assert door.by_bearer(text).name == "ann"


@pytest.mark.parametrize("spoil", [lambda t: t[:-1], lambda t: t + "x", lambda t: "", lambda t: t.replace("_", "-")])
def test_what_is_nearly_a_token_is_none(door: Door, spoil: object) -> None:
    _, text = door.accounts.issue("ann", 60.0)
    assert refusal(lambda: door.by_bearer(spoil(text))) == NOT_SIGNED_IN.id  # type: ignore[operator]


def test_the_file_holds_no_secret_and_is_its_owners_alone(door: Door) -> None:
    _, text = door.sign_in("ann", PASSWORD, "unix", 60.0)
    file = next(Path(door.accounts._document.where).parent.glob(FILE))
    content = file.read_text()
    assert text.rpartition("_")[2] not in content and PASSWORD not in content
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(content)["accounts"]["ann"]["password"].startswith("$argon2id$")
    file.chmod(0o640)
    assert refusal(door.accounts.all) == ACCOUNTS_UNUSABLE.id
    file.chmod(0o600)
    file.write_text("{")
    assert refusal(lambda: door.by_bearer(text)) == ACCOUNTS_UNUSABLE.id


@pytest.mark.parametrize("name", ["", "Ann", "root", "schedule", "a/b", "a" * 64, "x y"])
def test_some_names_are_nobodys(door: Door, name: str) -> None:
    assert refusal(lambda: door.accounts.add(name, ())) in ("bad-name", BAD_ACCOUNT.id)


def test_guesses_become_slow_for_an_address_and_for_an_account(door: Door, clock: ManualClock) -> None:
    def guess(name: str, peer: str) -> str:
        return refusal(lambda: door.sign_in(name, "wrong password", peer, 60.0))

    assert [guess("ann", "192.0.2.1") for _ in range(PEER_FAILURES)] == [SIGN_IN_FAILED.id] * PEER_FAILURES
    assert guess("nobody", "192.0.2.1") == SIGN_IN_LIMIT.id
    assert door.sign_in("ann", PASSWORD, "192.0.2.2", 60.0)[0].account == "ann", "others go on"
    clock.advance(FORGIVE_SECONDS)
    assert guess("ann", "192.0.2.1") == SIGN_IN_FAILED.id
    assert guess("ann", "192.0.2.1") == SIGN_IN_LIMIT.id
    for number in range(ACCOUNT_FAILURES):
        guess("ann", f"2001:db8:{number}::1")
    assert guess("ann", "203.0.113.9") == SIGN_IN_LIMIT.id
    assert guess("nobody", "203.0.113.9") == SIGN_IN_FAILED.id


def test_one_network_of_ipv6_is_one_peer_and_guesses_use_up_no_memory(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drengine.people.passwords._fits", lambda kept, password: False)
    door.accounts.add("ben", (), hash_password(PASSWORD))
    for number in range(PEER_FAILURES):
        refusal(lambda number=number: door.sign_in("ben", "wrong", f"2001:db8::{number:x}", 60.0))
    assert refusal(lambda: door.sign_in("ann", "wrong", "2001:db8::ffff", 60.0)) == SIGN_IN_LIMIT.id
    failures = door.passwords._failures
    for number in range(2 * PEERS_MAX):
        failures.note({f"peer {number}": 1})
    assert len(failures._until) == PEERS_MAX


def add_some(state: Path, first: int) -> None:
    for number in range(first, first + 10):
        Door.of(state, SystemClock()).accounts.add(f"n{number}", (Role.VIEWER,))


def test_changes_at_once_are_all_kept(door: Door, tmp_path: Path) -> None:
    processes = [
        multiprocessing.get_context("forkserver").Process(target=add_some, args=(tmp_path / "state", first))
        for first in (0, 10, 20)
    ]
    for each in processes:
        each.start()
    for each in processes:
        each.join(60)
        assert each.exitcode == 0
    assert len(door.accounts.all()) == 31


def test_the_kernel_says_who_a_user_is(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    assert door.by_user(os.geteuid()).roles >= {Role.ADMIN}
    assert door.by_user(0) == Person("root", "unix:0", frozenset({Role.ADMIN}))
    assert door.by_user(65533) == Person("uid-65533", "unix:65533", frozenset())
    door.accounts.add("nobody", (Role.OPERATOR,))
    assert door.by_user(65534) == Person("nobody", "unix:65534", frozenset({Role.OPERATOR}))


ALLOWED = {
    Role.VIEWER: {Action.LOOK},
    Role.OPERATOR: {Action.LOOK, Action.DRILL, Action.RECOVER, Action.FORCE},
    Role.APPROVER: {Action.LOOK, Action.APPROVE},
    Role.ADMIN: set(Action),
}


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("action", list(Action))
def test_a_role_may_what_the_table_of_the_page_says(role: Role, action: Action) -> None:
    assert set(TABLE) == set(Action)
    somebody = Person("ann", "login:1", frozenset({role}))
    if action in ALLOWED[role]:
        permit(somebody, action)
    else:
        assert refusal(lambda: permit(somebody, action)) == "not-permitted"
    assert refusal(lambda: permit(NOBODY, action)) == NOT_SIGNED_IN.id
    assert refusal(lambda: permit(Person("ann", "login:1"), action)) == "not-permitted"


def test_an_account_of_another_orchestrator_is_unknown_here(door: Door, tmp_path: Path) -> None:
    _, text = door.accounts.issue("ann", 60.0)
    other = Accounts(accounts_file(tmp_path / "other" / FILE), SystemClock())
    other.add("ann", (Role.ADMIN,))
    assert refusal(lambda: other.bearer(text)) == NOT_SIGNED_IN.id


def test_who_signed_in_and_who_could_not_is_in_the_audit_log(door: Door, tmp_path: Path) -> None:
    _, text = door.sign_in("ann", PASSWORD, "192.0.2.1", 60.0)
    for _ in range(3):
        assert refusal(lambda: door.sign_in("ann", "wrong", "192.0.2.9", 60.0)) == SIGN_IN_FAILED.id
    assert refusal(lambda: door.by_bearer("nothing", "192.0.2.9")) == NOT_SIGNED_IN.id
    door.sign_out(door.by_bearer(text))
    door.refusals.close()
    kept = [line.entry for line in read_entries(tmp_path / "state/audit")]
    signed = [(each.who, each.proved.partition(":")[0], each.did) for each in kept if not each.error]
    assert signed == [("person:ann", "password", "person.sign-in"), ("person:ann", "login", "person.sign-out")]
    failed = [each for each in kept if each.error]
    assert {(each.who, each.did, each.on, each.error) for each in failed} == {
        ("somebody at 192.0.2.9", "person.sign-in", "ann", "sign-in-failed"),
        ("somebody at 192.0.2.9", "person.token", "", "not-signed-in"),
    }
    assert sum(each.times for each in failed) == 4
    assert PASSWORD not in repr(kept) and text not in repr(kept)
