"""What a person, or time, does to the tables: a selection in, how many rows it changed out.

Each verb goes through any number of rows, a bounded number in one transaction. A delivery that somebody
is trying at this moment is left as it is, but for its event's payload where that is erased.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from aevents import store, tables
from aevents.event import new_id
from aevents.rows import NowMs
from aevents.settings import conf
from aevents.store import Entry, Owed

if TYPE_CHECKING:
    from aevents.models import Delivery

ROWS = 1000  # in one transaction
_COPIES = 100  # as they are held in memory
_DAY_MS = 24 * 3600 * 1000
_ORPHAN_MS = 5 * 60 * 1000  # an event without deliveries: two relays finished the last two at once


def replay(delivery_pks: Iterable[int]) -> int:
    """Let dead and done deliveries be owed again, as new and due now, with their ids; return how many.

    Those whose event's payload was erased stay as they are.
    """

    def work(pks: list[int]) -> int:
        return _free(pks, _is_over_and_kept()).update(
            state=tables.OWED,
            attempts=0,
            refusals=0,
            losses=0,
            due_ms=NowMs(),
            lease="",
            error="",
            changed_ms=NowMs(),
        )

    return _in_batches(work, delivery_pks)


def replay_again(delivery_pks: Iterable[int]) -> int:
    """As `replay`, by copies of the events with new ids, which no receiver drops as duplicates.

    The dead go, as the copy is in their place; the done stay in the history.
    """

    def work(pks: list[int]) -> int:
        chosen = _free(pks, _is_over_and_kept())
        rows = list(chosen.order_by("event_id", "pk").values("pk", "event_id", "target", "state"))
        events = tables.events().filter(pk__in={row["event_id"] for row in rows})
        found: dict[int, dict[str, Any]] = {row["id"]: {**row} for row in events.values()}
        store.add(
            [
                Entry(
                    found[event_pk]["direction"],
                    replace(tables.event_of(found[event_pk]), id=new_id()),
                    tuple(Owed(row["target"]) for row in group),
                )
                for event_pk, group in groupby(rows, key=lambda row: row["event_id"])
                if event_pk in found
            ]
        )
        dead = [row["pk"] for row in rows if row["state"] == tables.DEAD]
        _remove_deliveries(tables.deliveries().filter(pk__in=dead))
        return len(rows)

    return _in_batches(work, delivery_pks, _COPIES)


def discard(delivery_pks: Iterable[int]) -> int:
    """Remove deliveries that are owed or dead, for good; return how many. Those of their key go on."""

    def work(pks: list[int]) -> int:
        return _remove_deliveries(_free(pks, Q(state__in=(tables.OWED, tables.SUSPECT, tables.DEAD))))

    return _in_batches(work, delivery_pks)


def retry_now(delivery_pks: Iterable[int]) -> int:
    """Let deliveries that wait for their next try be due now; return how many did wait."""

    def work(pks: list[int]) -> int:
        waiting = Q(state__in=(tables.OWED, tables.SUSPECT), lease="", due_ms__gt=NowMs())
        return _free(pks, waiting).update(due_ms=NowMs(), changed_ms=NowMs())

    return _in_batches(work, delivery_pks)


def erase(event_id: str) -> int:
    """Erase the stored payloads of an event, and discard what is owed of it; return how many of those.

    What is being tried at this moment goes on, and is not counted; what is done stays in the history.
    """
    with transaction.atomic(using=tables.connection().alias):
        tables.events().filter(event_id=event_id).update(payload=None)
        pks = list(_deliveries_of(event_id).values_list("pk", flat=True))
        return discard(pks)


def is_being_tried(event_id: str) -> bool:
    """Tell whether somebody tries a delivery of this event at this moment."""
    return _deliveries_of(event_id).exclude(_is_free()).exists()


def pause(direction: int, target: str) -> bool:
    """Let nothing stored be tried for the target until `resume`; return whether that is new."""
    _, is_new = tables.pauses().get_or_create(
        direction=direction, target=target, defaults={"since_ms": NowMs()}
    )
    return is_new


def resume(direction: int, target: str) -> bool:
    """Let what is owed to the target be tried again; return whether it was paused."""
    return tables.pauses().filter(direction=direction, target=target).delete()[0] > 0


def dead_for(days: float) -> QuerySet[Delivery]:
    """Return the deliveries that died so many days ago or earlier."""
    return tables.deliveries().filter(state=tables.DEAD, changed_ms__lte=NowMs() - int(days * _DAY_MS))


def in_steps(rows: QuerySet[Delivery], verb: Callable[[list[int]], int]) -> Iterator[tuple[int, int]]:
    """Call a verb with all these deliveries, some at a time; yield how many it was given and has changed.

    Those that are stored meanwhile are left out, so that it ends.
    """
    last = rows.order_by("-pk").values_list("pk", flat=True).first()
    after = 0
    while last is not None:
        some = rows.filter(pk__gt=after, pk__lte=last).order_by("pk").values_list("pk", flat=True)
        pks = list(some[:ROWS])
        if not pks:
            return
        yield len(pks), verb(pks)
        after = pks[-1]


def _in_batches(work: Callable[[list[int]], int], delivery_pks: Iterable[int], size: int = ROWS) -> int:
    """Do it to some at a time, each in a transaction."""
    count, left = 0, iter(delivery_pks)
    while pks := list(islice(left, size)):
        with transaction.atomic(using=tables.connection().alias):
            count += work(pks)
    return count


def _is_free() -> Q:
    return Q(lease="") | Q(due_ms__lte=NowMs())


def _is_over_and_kept() -> Q:
    is_erased = Exists(tables.events().filter(pk=OuterRef("event_id"), payload=None))
    return Q(~is_erased, state__in=(tables.DEAD, tables.DONE))


def _deliveries_of(event_id: str) -> QuerySet[Delivery]:
    return tables.deliveries().filter(event_id__in=tables.events().filter(event_id=event_id).values("pk"))


def _free(pks: list[int], condition: Q) -> QuerySet[Delivery]:
    """Return those that nobody tries, locked where the database has locks for rows.

    One that a handler's transaction has taken is tried, however its lease stands: it is not waited for.
    """
    rows = tables.deliveries().filter(_is_free() & condition, pk__in=pks)
    if not tables.connection().features.has_select_for_update_skip_locked:
        return rows
    locked = rows.order_by("pk").select_for_update(skip_locked=True).values_list("pk", flat=True)
    return tables.deliveries().filter(pk__in=list(locked))


def _remove_deliveries(rows: QuerySet[Delivery]) -> int:
    """Remove them, and the events of which nothing is left."""
    event_pks = list(rows.values_list("event_id", flat=True))
    count: int = rows.delete()[0]
    store.sweep(event_pks)
    return count


# By itself, once a minute


def tidy() -> bool:
    """Remove finished deliveries past `HISTORY_DAYS`, events without any, arrivals past `SEEN_DAYS`.

    Returns whether there is more to remove.
    """
    return any([_forget_done(), _forget_events(), _forget_seen()])


def _forget_done() -> bool:
    since = NowMs() - int(conf().HISTORY_DAYS * _DAY_MS)
    return _remove(tables.deliveries().filter(state=tables.DONE, changed_ms__lt=since).order_by("pk"))


def _forget_events() -> bool:
    left = tables.deliveries().filter(event_id=OuterRef("pk"))
    old = tables.events().filter(created_ms__lt=NowMs() - _ORPHAN_MS)
    return _remove(old.exclude(Exists(left)).order_by("pk"))


def _forget_seen() -> bool:
    since = NowMs() - int(conf().LIMITS.SEEN_DAYS * _DAY_MS)
    return _remove(tables.seen().filter(seen_ms__lt=since).order_by("seen_ms"))


def _remove(rows: QuerySet[Any]) -> bool:
    keys = list(rows.values_list("pk", flat=True)[:ROWS])
    if keys:
        rows.model._default_manager.using(rows.db).filter(pk__in=keys).delete()
    return len(keys) == ROWS
