"""Who a user of this host is, as the kernel says: by the account of the same name, and the service's own user."""

from __future__ import annotations

import pwd

from drengine.people.accounts import Accounts
from drengine.people.roles import Person, Role


def person_of_user(uid: int, accounts: Accounts, *, owner: int) -> Person:
    """The person behind a user id. Root and the service's user own everything here, so they are admins.

    Args:
        uid: as the kernel tells it.
        accounts: an account of the user's name gives its roles.
        owner: the service's user id.

    Raises:
        DrengineError: ACCOUNTS_UNUSABLE.
    """
    name = _name(uid)
    account = accounts.find(name) if uid else None
    roles = frozenset(account.roles) if account else frozenset()
    return Person(name, f"unix:{uid}", roles | {Role.ADMIN} if uid in (0, owner) else roles)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid-{uid}"
