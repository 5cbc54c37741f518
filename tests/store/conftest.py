"""Some of the store's tests run on encrypted stores, too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.store.harness import encrypted


@pytest.fixture(params=["clear", "encrypted"])
def at_rest(request: pytest.FixtureRequest) -> Iterator[str]:
    """Stores in clear, then encrypted ones; a module uses it by `pytestmark = pytest.mark.usefixtures("at_rest")`."""
    if request.param == "clear":
        yield "clear"
        return
    with encrypted():
        yield "encrypted"
