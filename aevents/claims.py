"""Out of the store: a target in, the deliveries that are due for it out, each leased to the caller."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q

from aevents.event import Event
from aevents.rows import NowMs, now_ms
from aevents.tables import (
    DEAD,
    LOST_AFTER,
    OWED,
    SUSPECT,
    SUSPECT_AFTER,
    Lease,
    connection,
    deliveries,
    event_of,
    lease_s,
    new_token,
    pauses,
)

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from aevents.models import Delivery


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that was claimed, with its event as it was stored."""

    lease: Lease
    event: Event
    direction: int
    target: str


@dataclass(frozen=True, slots=True)
class Due:
    """The oldest delivery that waits for a target: due in so many seconds, long since where negative."""

    is_suspect: bool
    direction: int
    target: str
    in_s: float


_paused: frozenset[tuple[int, str]] = frozenset()


def is_paused(direction: int, target: str) -> bool:
    """Tell whether a person has paused the target, as far as this process saw at its last look."""
    return (direction, target) in _paused


def due() -> list[Due]:
    """Return what waits: the oldest of each target. What was paused is left out."""
    global _paused
    table = connection().ops.quote_name(apps.get_model("aevents", "Delivery")._meta.db_table)
    _paused = frozenset(pauses().values_list("direction", "target"))
    with connection().cursor() as cursor:
        cursor.execute(
            f"SELECT state, direction, target, MIN(due_ms) - {now_ms(connection()).sql} FROM {table}"  # noqa: S608 - both are ours
            " WHERE state IN (1, 2) GROUP BY state, direction, target"
        )
        found = cursor.fetchall()
    return [
        Due(state == SUSPECT, direction, target, float(in_ms) / 1000)
        for state, direction, target, in_ms in found
        if (direction, target) not in _paused
    ]


def claim(direction: int, target: str, limit: int, *, suspects: bool = False) -> list[Claimed]:
    """Lease the oldest deliveries of a target that are due, at most `limit`; none that another has.

    Of those with the same key only the oldest. One whose lease ended without a word too often is not
    given out with others; after still more it is dead.
    """
    with transaction.atomic(using=connection().alias):
        rows = _lock(_due_rows(direction, target, SUSPECT if suspects else OWED), limit)
        lost = [row for row in rows if row["lease"]]
        for row in lost:
            row["losses"] += 1
        deliveries().filter(pk__in=[row["id"] for row in lost]).update(losses=F("losses") + 1)
        limit_of_losses = LOST_AFTER if suspects else SUSPECT_AFTER
        given_up = [row["id"] for row in lost if row["losses"] > limit_of_losses]
        if given_up:
            error = f"the process that held it ended without a word, {limit_of_losses + 1} times in a row"
            deliveries().filter(pk__in=given_up).update(
                state=DEAD if suspects else SUSPECT, lease="", due_ms=NowMs(), changed_ms=NowMs(), error=error
            )
        ids = [row["id"] for row in rows if row["id"] not in given_up]
        token, ends = new_token(), time.monotonic() + lease_s()
        if ids:
            deliveries().filter(pk__in=ids, due_ms__lte=NowMs()).update(
                lease=token, due_ms=NowMs() + int(lease_s() * 1000)
            )
        fields = [field.attname for field in apps.get_model("aevents", "StoredEvent")._meta.fields]
        mine = deliveries().filter(pk__in=ids, lease=token).values_list(
            "id", "direction", "target", "attempts", "refusals", "losses", "order_key", "event_id",
            *(f"event__{field}" for field in fields),
        )  # fmt: skip
        payload = 8 + fields.index("payload")
        by_id = {row[0]: _claimed(row, fields, token, ends) for row in mine if row[payload] is not None}
        erased = [pk for pk in ids if pk not in by_id]
        if erased:
            deliveries().filter(pk__in=erased, lease=token).update(
                state=DEAD, lease="", due_ms=NowMs(), changed_ms=NowMs(), error="its payload was erased"
            )
    return [by_id[pk] for pk in ids if pk in by_id]


def _due_rows(direction: int, target: str, state: int) -> QuerySet[Delivery]:
    older = deliveries().filter(
        order_key=OuterRef("order_key"), pk__lt=OuterRef("pk"), state__in=(OWED, SUSPECT, DEAD)
    )
    return (
        deliveries()
        .filter(Q(order_key="") | ~Exists(older))
        .filter(state=state, direction=direction, target=target, due_ms__lte=NowMs())
        .order_by("due_ms", "pk")
    )


def _lock(rows: QuerySet[Delivery], limit: int) -> list[dict[str, Any]]:
    features = connection().features
    if features.has_select_for_update:
        rows = rows.select_for_update(skip_locked=features.has_select_for_update_skip_locked)
    return [dict(row) for row in rows.values("id", "lease", "losses")[:limit]]


def _claimed(row: Sequence[Any], fields: Sequence[str], token: str, ends: float) -> Claimed:
    pk, direction, target, attempts, refusals, losses, key, event_pk, *values = row
    lease = Lease(pk, event_pk, token, ends, attempts, refusals, losses, bool(key))
    return Claimed(lease, event_of(dict(zip(fields, values, strict=True))), direction, target)
