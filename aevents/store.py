"""The one door to the tables: events and what is owed of them in, leases out. Each change is a verb.

All of it is sync and works on the `STORE` database in the calling thread, in the caller's transaction
where one is open. `claims.py` is the way out again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef

from aevents.event import Event
from aevents.rows import NowMs, Raw, insert, insert_with, now_ms
from aevents.settings import conf
from aevents.tables import (
    DEAD,
    DONE,
    EPOCH,
    OWED,
    Lease,
    LeaseLost,
    connection,
    deliveries,
    events,
    fit,
    lease_s,
    new_token,
    order_key,
    seen,
    seen_key,
)

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from aevents.models import Delivery


@dataclass(frozen=True, slots=True)
class Owed:
    """One target that is owed an event, and how that stands when it is stored."""

    target: str
    is_leased: bool = False  # to the one who stores it
    due_in_s: float = 0.0
    attempts: int = 0
    refusals: int = 0
    error: str = ""
    is_dead: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One event with all who are owed it."""

    direction: int
    event: Event
    owed: tuple[Owed, ...]


@dataclass(frozen=True, slots=True)
class Setback:
    """How a try that did not succeed leaves its delivery."""

    lease: Lease
    attempts: int
    refusals: int
    due_in_s: float
    error: str
    is_dead: bool = False
    losses: int = 0


def add(entries: Sequence[Entry]) -> list[tuple[Lease | None, ...]]:
    """Store events and all who are owed them; return the leases, one for each `Owed` in order.

    In the caller's transaction where one is open, else in its own. At the most two statements, on
    PostgreSQL one for one event. Lease nothing that has a key: an older one may be waiting.
    """
    ends, token = time.monotonic() + lease_s(), new_token()
    database = connection()
    now = now_ms(database)
    rows = [[_delivery_row(entry, owed, token, now) for owed in entry.owed] for entry in entries]
    events = [_event_row(entry, now) for entry in entries]
    with transaction.atomic(using=database.alias, savepoint=False):
        found = insert_with(database, "StoredEvent", events, "Delivery", rows)
    return [
        tuple(
            Lease(pk, event_pk, token, ends, owed.attempts, owed.refusals) if row["lease"] else None
            for pk, owed, row in zip(pks, entry.owed, entry_rows, strict=True)
        )
        for entry, entry_rows, (event_pk, pks) in zip(entries, rows, found, strict=True)
    ]


def arrive(entries: Sequence[Entry]) -> list[tuple[Lease | None, ...] | None]:
    """Store events that arrived, each once for ever: None for one that was stored before.

    It is remembered in the transaction that stores it, so what was rolled back can come again.
    """
    keys = [seen_key(entry.event.identity) for entry in entries]
    with transaction.atomic(using=connection().alias):
        new = _remember(dict.fromkeys(keys))
        fresh: list[Entry] = []
        places: dict[int, int] = {}
        for place, (key, entry) in enumerate(zip(keys, entries, strict=True)):
            if key in new:
                new.discard(key)  # a second copy in the same batch is one too many
                places[place] = len(fresh)
                fresh.append(entry)
        leases = add(fresh) if fresh else []
    return [leases[places[place]] if place in places else None for place in range(len(entries))]


def _remember(keys: Iterable[str]) -> set[str]:
    """Remember arrivals; return those that were not known."""
    keys = sorted(set(keys))  # in one order everywhere: two who insert the same ones cannot deadlock
    known = set(seen().filter(key__in=keys).values_list("key", flat=True))
    new = [key for key in keys if key not in known]
    if not new:
        return set()
    rows: list[dict[str, Any]] = [{"key": key, "seen_ms": now_ms(connection())} for key in new]
    alias = connection().alias
    try:
        with transaction.atomic(using=alias):
            insert(connection(), "Seen", rows, returning=False)
        return set(new)
    except IntegrityError:  # another process stores the same ones at this moment
        return {str(row["key"]) for row in rows if _remembered_alone(row, alias)}


def _remembered_alone(row: dict[str, Any], alias: str) -> bool:
    try:
        with transaction.atomic(using=alias):
            insert(connection(), "Seen", [row], returning=False)
    except IntegrityError:
        return False
    return True


def take(leases: Sequence[Lease]) -> None:
    """Note, in the caller's transaction, that these are done; raises `LeaseLost` if one is not mine.

    The rows stay locked until that transaction ends: nobody else can begin meanwhile, however long
    it lasts, and a rollback leaves the deliveries owed.
    """
    if leases and _done(_held(leases)) != len(leases):
        raise LeaseLost


def finish(leases: Sequence[Lease]) -> list[None]:
    """Note that these are delivered; who lost the lease meanwhile changes nothing."""
    with transaction.atomic(using=connection().alias):
        _done(_held(leases))
        sweep([lease.event_pk for lease in leases])
    return [None] * len(leases)


def sweep(event_pks: Sequence[int]) -> list[None]:
    """Remove those of the events of which nothing is owed any more, nor kept."""
    left = deliveries().filter(event_id=OuterRef("pk"))
    events().filter(pk__in=set(event_pks)).exclude(Exists(left)).delete()
    return [None] * len(event_pks)


def set_back(setbacks: Sequence[Setback]) -> list[None]:
    """Note tries that did not succeed: when the next one is due, or that there is none."""
    with transaction.atomic(using=connection().alias):
        for each in setbacks:
            deliveries().filter(pk=each.lease.id, lease=each.lease.token).update(
                state=DEAD if each.is_dead else OWED,
                attempts=each.attempts,
                refusals=each.refusals,
                losses=each.losses,
                due_ms=NowMs() + int(each.due_in_s * 1000),
                lease="",
                error=fit(each.error),
                changed_ms=NowMs(),
            )
    return [None] * len(setbacks)


def give_back(given: Sequence[tuple[Lease, float]]) -> list[None]:
    """End leases without a try; each may be claimed again after so many seconds."""
    with transaction.atomic(using=connection().alias):
        for lease, in_s in given:
            _free([lease]).update(lease="", due_ms=NowMs() + int(in_s * 1000))
    return [None] * len(given)


def renew(leases: Sequence[Lease]) -> set[int]:
    """Let leases begin anew; return the ids of those that were lost."""
    ids = [lease.id for lease in leases]
    tokens = {lease.id: lease.token for lease in leases}
    with transaction.atomic(using=connection().alias):
        _free(leases).update(due_ms=NowMs() + int(lease_s() * 1000))
        kept = dict(deliveries().filter(pk__in=ids).values_list("pk", "lease"))
    return {pk for pk, token in tokens.items() if kept.get(pk) != token}


def _free(leases: Sequence[Lease]) -> QuerySet[Delivery]:
    """Return those that are held still, without waiting for a handler's transaction that has taken one."""
    rows = _held(leases)
    if not connection().features.has_select_for_update_skip_locked:
        return rows
    ids = [row["id"] for row in rows.select_for_update(skip_locked=True).values("id")]
    return deliveries().filter(pk__in=ids)


def _held(leases: Sequence[Lease]) -> QuerySet[Delivery]:
    return deliveries().filter(pk__in=[each.id for each in leases], lease__in={e.token for e in leases})


def _done(rows: QuerySet[Delivery]) -> int:
    if conf().HISTORY_DAYS:
        return rows.update(state=DONE, lease="", error="", changed_ms=NowMs())
    return rows.delete()[0]


def _event_row(entry: Entry, now: Raw) -> dict[str, Any]:
    event = entry.event
    return {
        "direction": entry.direction,
        "event_id": event.id,
        "id_scope": event.id_scope,
        "type": event.type,
        "source": event.source,
        "time_us": (event.time - EPOCH) // timedelta(microseconds=1),
        "key": event.key or "",
        "cause": event.cause or "",
        "correlation": event.correlation or "",
        "hops": event.hops,
        "trace": event.trace or "",
        "payload": event.data,
        "created_ms": now,
    }


def _delivery_row(entry: Entry, owed: Owed, token: str, now: Raw) -> dict[str, Any]:
    key = order_key(entry.direction, owed.target, entry.event.key)
    is_leased = owed.is_leased and not owed.is_dead
    return {
        "direction": entry.direction,
        "target": owed.target,
        "order_key": key,
        "state": DEAD if owed.is_dead else OWED,
        "attempts": owed.attempts,
        "refusals": owed.refusals,
        "losses": 0,
        "due_ms": now.plus(int((lease_s() if is_leased else owed.due_in_s) * 1000)),
        "lease": token if is_leased else "",
        "error": fit(owed.error),
        "changed_ms": now,
    }
