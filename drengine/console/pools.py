"""Threads of the REST API, apart from those in which runs are carried out: nobody who asks slows a recovery down.

Who somebody is, and whether a password is right, is judged in threads of their own: those who are known are not kept
waiting by those who are not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from drengine.people.passwords import AT_ONCE

ANSWERS = ThreadPoolExecutor(8, "rest")
LOOKS = ThreadPoolExecutor(2, "looks")
"""They wait for hosts and fences; whoever looks keeps nobody from answers."""
PROOFS = ThreadPoolExecutor(4, "proofs")
PASSWORDS = ThreadPoolExecutor(AT_ONCE, "passwords")
T = TypeVar("T")


def off(work: Callable[[], T], pool: ThreadPoolExecutor = ANSWERS) -> Awaitable[T]:
    """Do it in a thread: the loop carries runs out meanwhile."""
    return asyncio.get_running_loop().run_in_executor(pool, work)
