"""The outbox: parcels of one call in; their events stored first, with the caller's data where it can be.

After that the courier delivers them from memory, each leased to this process; what it does not deliver
in time is anybody's who relays. What has a key is claimed in its order instead.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from aevents import outage, store, tables
from aevents.courier import courier
from aevents.keeper import keeper
from aevents.shipment import Parcel
from aevents.store import Entry, Owed
from aevents.tables import OUT

_PATIENCE_S = 0.5  # with a database that is down; then it is sent without


def joins_transaction() -> bool:
    """Tell whether the `STORE` database is in an atomic block of this thread."""
    return tables.why_not() is None and bool(tables.connection().in_atomic_block)


def join(parcels: Sequence[Parcel]) -> None:
    """Store the events in the caller's transaction, to leave after its commit; raises what that raises."""
    _add(parcels)
    hand_over = functools.partial(_hand_over, parcels)
    # robust: an error here must not stop the hooks of others
    tables.connection().on_commit(hand_over, robust=True)


def send(parcels: Sequence[Parcel]) -> None:
    """Store the events in a transaction of their own, then hand them over; `queued` as soon as they are.

    Where they cannot be stored they are sent directly.
    """
    if not parcels:
        return
    if tables.why_not() is not None:
        courier.ship(parcels)
        return

    def done(_: Any, error: BaseException | None) -> None:
        if error is not None:
            outage.tell("The outbox cannot be written: events are sent without", error)
            courier.ship(parcels)
            return
        for parcel in parcels:
            parcel.settle("queued")
        _hand_over(parcels)

    held_bytes = sum(parcel.held_bytes for parcel in parcels)
    if keeper.is_full(held_bytes):
        courier.ship(parcels)
        return
    try:
        keeper.put(_add_all, parcels, done, patience_s=_PATIENCE_S, held_bytes=held_bytes)
    except RuntimeError:
        courier.ship(parcels)


def _add_all(calls: Sequence[Sequence[Parcel]]) -> list[None]:
    _add([parcel for parcels in calls for parcel in parcels])
    return [None] * len(calls)


def _add(parcels: Sequence[Parcel]) -> None:
    by_event: dict[int, list[Parcel]] = {}
    for parcel in parcels:
        by_event.setdefault(id(parcel.event), []).append(parcel)
    entries = [
        Entry(
            OUT,
            group[0].event,
            # What has a key waits for its turn: an older one may not have been delivered yet.
            tuple(Owed(p.destination.name, is_leased=p.event.key is None) for p in group),
        )
        for group in by_event.values()
    ]
    for group, leases in zip(by_event.values(), store.add(entries), strict=True):
        for parcel, lease in zip(group, leases, strict=True):
            parcel.lease = lease


def _hand_over(parcels: Sequence[Parcel]) -> None:
    # A transaction may have lasted longer than the lease: then another one may have it already.
    enough_s = tables.lease_s() / 3
    mine = [parcel for parcel in parcels if parcel.lease is not None and parcel.lease.lasts(enough_s)]
    if mine:
        courier.ship(mine)
    if len(mine) < len(parcels):
        keeper.begin(at_once=True)
