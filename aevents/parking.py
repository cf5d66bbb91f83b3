"""Where a delivery goes that does not get through now: to the store, or, where there is none, to the log.

A parcel and the reason in, its result noted on its shipment: `parked`, or `failed` with an error that
says what is missing. May be called in any thread.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from aevents import outage, outcomes, signals, store, tables
from aevents.keeper import keeper
from aevents.retry import Later
from aevents.shipment import Parcel
from aevents.store import Entry, Owed
from aevents.tables import OUT, Lease

AT_ONCE = Later(0, 0)
UNTIL_A_DEPLOY = Later(0, 0, 60.0)  # for a name that the settings do not know, or not yet; or other mistakes


def park(parcel: Parcel, error: str, later: Later = AT_ONCE) -> None:
    """Keep the parcel for a later try, and say so on its shipment as soon as that is certain."""
    if parcel.lease is not None:  # it is stored already
        if later.attempts > parcel.lease.attempts:
            outcomes.set_back(parcel.lease, later, error)
        elif later is UNTIL_A_DEPLOY:  # no attempt is spent, but the row tells what is to be mended
            attempts, refusals = parcel.spent
            outcomes.set_back(parcel.lease, replace(later, attempts=attempts, refusals=refusals), error)
        else:
            outcomes.given_back(parcel.lease, later.in_s)
        _tell(parcel, error, later)
        return
    reason = tables.why_not()
    if reason is None and keeper.is_full(parcel.held_bytes):
        reason = "the database is down, and as many as may wait for it do so already"
    if reason is not None:
        fail(parcel, error, reason)
        return

    def done(_: Any, problem: BaseException | None) -> None:
        if problem is not None:
            fail(parcel, error, outage.explain(problem))
        else:
            _tell(parcel, error, later)

    try:
        keeper.put(store.add, entry(parcel, error, later), done, held_bytes=parcel.held_bytes)
    except RuntimeError as problem:
        fail(parcel, error, str(problem))


def entry(parcel: Parcel, error: str, later: Later = AT_ONCE, *, is_leased: bool = False) -> Entry:
    """Return what is stored of a parcel."""
    owed = Owed(
        parcel.destination.name,
        is_leased,
        later.in_s,
        later.attempts,
        later.refusals,
        error,
        later.is_dead,
    )
    return Entry(OUT, parcel.event, (owed,))


def store_under_way(parcel: Parcel) -> None:
    """Store what is with its destination still, leased to us: a crash loses it no more.

    Called on the courier's loop. Its success removes the row, its failure is noted there.
    """
    loop = asyncio.get_running_loop()
    parcel.is_being_stored = True

    def done(leases: Any, problem: BaseException | None) -> None:
        try:
            loop.call_soon_threadsafe(_stored, parcel, leases, problem)
        except RuntimeError:  # the loop has ended
            _stored(parcel, leases, problem)

    what = entry(parcel, "no answer yet", is_leased=True)
    keeper.put(store.add, what, done, held_bytes=parcel.held_bytes)


def _stored(parcel: Parcel, leases: tuple[Lease, ...] | None, problem: BaseException | None) -> None:
    parcel.is_being_stored = False
    ended, parcel.ended = parcel.ended, None
    lease = leases[0] if leases is not None else None
    if ended is not None:
        ended(lease)
    elif lease is not None:
        parcel.lease = lease
        parcel.settle("parked", f"no answer within {parcel.elapsed_s:.1f} s")
    elif problem is not None:
        outage.tell("Deliveries that take long could not be stored", problem)


def fail(parcel: Parcel, error: str, reason: str | None = None) -> None:
    """Say on its shipment, and in the log, that the parcel is lost: there is nowhere to store it."""
    text = error if reason in (None, tables.SWITCHED_OFF) else f"{error}; not stored: {reason}"
    _announce(parcel, text, "failed")
    parcel.settle("failed", text)


def _tell(parcel: Parcel, error: str, later: Later) -> None:
    if later.is_dead:
        outcomes.died(parcel.event, parcel.destination.name, later.attempts, error)
        parcel.settle("failed", f"{error}; kept as a dead letter")
        return
    _announce(parcel, error, "parked")
    parcel.settle("parked", error)


def _announce(parcel: Parcel, error: str, outcome: str) -> None:
    signals.announce(
        signals.delivery_failed,
        event=parcel.event,
        service=parcel.destination.name,
        attempts=parcel.attempts,
        elapsed_s=parcel.elapsed_s,
        error=error,
        outcome=outcome,
    )
