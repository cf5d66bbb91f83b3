"""What became of a stored delivery, noted in the store: a lease and an error in, the next try's time out."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

from aevents import retry, signals, store
from aevents.event import Event
from aevents.keeper import keeper
from aevents.retry import Later
from aevents.store import Setback
from aevents.tables import Lease


def succeeded(*leases: Lease) -> None:
    """Note that their targets have them."""
    if leases:
        keeper.put_all(store.finish, leases)
        if any(lease.is_keyed for lease in leases):  # the next of their keys may go
            keeper.look_in(0.0)


def failed(event: Event, target: str, lease: Lease, error: BaseException, text: str) -> Later:
    """Note a try that failed; return when the next one is due, if there is one."""
    later = retry.later(lease.attempts, lease.refusals, error)
    set_back(lease, later, text)
    if later.is_dead:
        died(event, target, later.attempts, text)
    return later


def set_back(lease: Lease, later: Later, text: str) -> None:
    """Note a try that failed, and when the next one is due."""
    setback = Setback(lease, later.attempts, later.refusals, later.in_s, text, later.is_dead)
    keeper.put(store.set_back, setback)
    if not later.is_dead:
        keeper.look_in(later.in_s)


def given_back(lease: Lease, in_s: float = 0.0) -> None:
    """End a lease without a try, and so without spending an attempt."""
    keeper.put(store.give_back, (lease, in_s))
    keeper.look_in(in_s)


async def in_time(stored: Future[Any], timeout_s: float) -> Any:
    """Await the leases of what is being stored; what comes too late is given back."""
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(asyncio.wrap_future(stored))
    except TimeoutError:
        stored.add_done_callback(came_too_late)
        raise


def came_too_late(stored: Future[tuple[Lease | None, ...] | None]) -> None:
    """Give back what was stored after its caller had given up: it is here, and nobody works on it."""
    leases = stored.result() if stored.exception() is None else None
    for lease in leases or ():
        if lease is not None:
            given_back(lease)


def died(event: Event, target: str, attempts: int, text: str) -> None:
    """Tell that a delivery is dead: kept, and tried no more until a person says so."""
    signals.announce(signals.delivery_dead, event=event, target=target, attempts=attempts, error=text)
