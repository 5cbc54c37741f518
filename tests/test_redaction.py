"""Secrets stay out of what is kept and shown, by their looks and by their value."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.process.environment import PASS_VARIABLE
from drengine.redaction import secret_values, without_secrets

KEY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7hunter2\nhunter2+/=="
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{KEY}\n-----END RSA PRIVATE KEY-----"

pytestmark = pytest.mark.fault(59)


@pytest.mark.parametrize(
    "text",
    [
        '{"password": "hunter2"}',
        '{"password" : "two hunter2 words", "a": 1}',
        '"{\\"password\\": \\"two hunter2\\"}"',
        "mysql --password hunter2 -h db",
        "mysql --password='two hunter2'",
        "tool --api-key hunter2",
        "tool --db-password hunter2",
        "tool -token hunter2",
        "> Cookie: a=b; session=hunter2",
        "Set-Cookie: session=x; then=hunter2",
        'Authorization: Digest username="a", response="hunter2"',
        "Proxy-Authorization: Basic hunter2 hunter2",
        "curl -H 'Cookie: a=b; c=hunter2' http://x",
        'curl -H "Authorization: Token hunter2"',
        PEM,
        f"before\n{PEM}\nafter",
        PEM.partition("-----END")[0],
        PEM.partition("KEY-----\n")[2],
        "-----BEGIN PRIVATE KEY-----\nhunter2",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n-----END OPENSSH PRIVATE KEY-----",
        "passphrase: hunter2",
        "https://ann:hunter2@host/",
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str) -> None:
    shown = without_secrets(text)
    assert "hunter2" not in shown
    assert "***" in shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://host:80/a@b answered 200 for tokens",
        "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----",
        "tokens of love, cookies, a password",
        "step check:1 passed in 2.5 s",
        "--no-pager -x --verbose",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_values_that_a_runbook_gives_under_names_of_secrets_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASS_VARIABLE, "VAULT_TOKEN LANG_X")
    monkeypatch.setenv("VAULT_TOKEN", "from-the-environment")
    monkeypatch.setenv("LANG_X", "no-secret-at-all")
    monkeypatch.setenv("OTHER_TOKEN", "never-passed-on")
    runbook = {
        "sources": {
            "db": {"launch": {"settings": {"environment": {"PGPASSWORD": "sesame-open", "PGUSER": "shopkeeper"}}}}
        },
        "waves": [
            {"then": [{"http": {"headers": {"Authorization": "Bearer abcdef-token"}}}]},
            {"then": [{"command": ["psql", "--password", "by-option", "--host", "db.example"]}]},
        ],
        "pin_token": "12",
    }
    assert secret_values(runbook) == {
        "sesame-open", "Bearer abcdef-token", "abcdef-token", "by-option", "from-the-environment"
    }  # fmt: skip


@given(st.text(), st.text(min_size=6), st.text())
def test_a_known_value_is_nowhere(before: str, value: str, after: str) -> None:
    shown = without_secrets(before + value + after, {value})
    assert value not in shown or value in "***" or value in before + "***" + after


@pytest.mark.parametrize("piece", ["a-", "password", '\\"', "--password ", "://a", "Cookie:", "token=", "-----BEGIN "])
def test_hostile_output_is_masked_in_time(piece: str) -> None:
    began = time.process_time()
    without_secrets((piece * (1 << 14))[: 1 << 14])
    assert time.process_time() - began < 5.0
