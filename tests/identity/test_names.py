"""There is one way to write an identity, and nothing else is read as one."""

from __future__ import annotations

import contextlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.identity.names import Identity, Role, identity_among
from drengine.model.errors import BAD_NAME, DrengineError
from drengine.model.names import check_name


def _is_name(text: str) -> bool:
    try:
        check_name(text, what="name")
    except DrengineError:
        return False
    return True


names = st.text(string.ascii_lowercase + string.digits + "._-", min_size=1, max_size=63).filter(_is_name)
identities = st.builds(Identity, names, st.sampled_from(Role), names)


@given(identities)
def test_an_identity_is_read_as_it_was_written(identity: Identity) -> None:
    assert Identity.parse(str(identity)) == identity
    assert identity_among(["https://example.org/", str(identity), "urn:x"]) == identity


@given(st.text(max_size=80) | st.builds(lambda rest: f"drengine://{rest}", st.text("ab/:@?#%.A-_ \n\0é", max_size=30)))
def test_what_is_read_would_be_written_so(text: str) -> None:
    try:
        found = Identity.parse(text)
    except DrengineError as error:
        assert error.kind is BAD_NAME
    else:
        assert str(found) == text


@given(identities, st.data())
def test_one_changed_character_makes_another_identity_or_none(identity: Identity, data: st.DataObject) -> None:
    text = str(identity)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters().filter(lambda char: char != text[at])) + text[at + 1 :]
    with contextlib.suppress(DrengineError):
        assert Identity.parse(changed) != identity


@pytest.mark.parametrize(
    "text",
    [
        "drengine://main/agent/shop/",
        "drengine://main/agent//shop",
        "drengine://main/agent/shop?x",
        "drengine://main/agent/shop#x",
        "drengine://main/agent/%73hop",
        "drengine://root@main/agent/shop",
        "drengine://main:1/agent/shop",
        "drengine://main/Agent/shop",
        "drengine://main/admin/shop",
        "drengine://main/agent/../shop",
        "drengine://main/agent/a..b",
        "drengine://main/agent/shop\n",
        "drengine:/main/agent/shop",
        "DRENGINE://main/agent/shop",
        f"drengine://main/agent/{'s' * 64}",
        "drengine:////",
    ],
)
def test_what_only_looks_like_an_identity_is_refused_and_never_overlooked(text: str) -> None:
    with pytest.raises(DrengineError) as refused:
        Identity.parse(text)
    assert refused.value.kind is BAD_NAME
    with pytest.raises(DrengineError):
        identity_among([text])


def test_a_certificate_has_one_identity() -> None:
    assert identity_among([]) is None
    assert identity_among(["https://example.org", "urn:drengine://main/agent/shop"]) is None
    with pytest.raises(DrengineError):
        identity_among(["drengine://main/agent/shop", "drengine://main/agent/web"])
    with pytest.raises(DrengineError):
        identity_among(["drengine://main/agent/shop"] * 2)
