"""What the admin says of a row: deliveries, events and pauses in, the words of each column out.

Whatever a column needs comes with the row's own statement.
"""

from __future__ import annotations

from typing import Any

from django.contrib.admin import display
from django.db.models import Case, Count, Exists, OuterRef, Q, QuerySet, Subquery, Value, When
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.utils.html import format_html

from aevents import readable, tables
from aevents.models import Delivery, StoredEvent
from aevents.rows import NowMs
from aevents.tables import DEAD, DONE, OWED, SUSPECT

_SHORT = 80
_NOTHING = "–"


class Seen:
    """A table that is looked at: nothing is added, changed or deleted, and it is in the `STORE` database."""

    model: Any

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = self.model._default_manager.using(tables.connection().alias).order_by("-pk")
        rows = rows.none() if tables.why_not() else rows
        found: QuerySet[Any] = self.with_more(rows).annotate(now_ms=NowMs())
        return found

    def with_more(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Return the rows with what their columns need, in the same statement."""
        return rows

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @display(description="direction")
    def way(self, row: Any) -> str:
        return str(row.get_direction_display())


class DeliveryColumns(Seen):
    """What is said of a delivery."""

    def with_more(self, rows: QuerySet[Delivery]) -> QuerySet[Delivery]:
        older = tables.deliveries().filter(
            order_key=OuterRef("order_key"), pk__lt=OuterRef("pk"), state__in=(OWED, SUSPECT, DEAD)
        )
        paused = tables.pauses().filter(direction=OuterRef("direction"), target=OuterRef("target"))
        return (
            rows.select_related("event")
            .defer("event__payload")
            .annotate(
                # Not by a join: whoever counts the rows would have it too.
                is_erased=Exists(tables.events().filter(pk=OuterRef("event_id"), payload=None)),
                is_paused=Exists(paused),
                # A CASE, as databases look among all that have no key otherwise.
                is_behind=Case(When(order_key="", then=Value(False)), default=Exists(older)),
            )
        )

    @display(description="event")
    def event_and_id(self, row: Delivery) -> str:
        return _two_lines(row.event.type, row.event.event_id)

    @display(description="event id")
    def event_id(self, row: Delivery) -> str:
        return readable.visible(row.event.event_id)

    @display(description="type")
    def event_type(self, row: Delivery) -> str:
        return readable.visible(row.event.type)

    @display(description="key")
    def key(self, row: Delivery) -> str:
        return readable.visible(row.event.key) or _NOTHING

    @display(description="target")
    def way_and_target(self, row: Any) -> str:
        return f"{row.get_direction_display()}: {readable.visible(row.target)}"

    @display(description="state")
    def standing_and_attempts(self, row: Any) -> str:
        return _two_lines(self.standing(row), f"{row.attempts:,} attempt{'' if row.attempts == 1 else 's'}")

    @display(description="state")
    def standing(self, row: Any) -> str:
        words = [str(row.get_state_display())]
        if row.lease and row.due_ms > row.now_ms:
            words.append("being tried")
        if row.state == SUSPECT:
            words.append("tried alone")
        if row.is_erased:
            words.append("payload erased")
        return ", ".join(words)

    @display(description="due")
    def due(self, row: Any) -> str:
        if row.state in (DEAD, DONE):
            return _NOTHING
        distance = readable.distance(row.due_ms, row.now_ms)
        if row.lease:
            distance = f"leased until then, {distance}"
        elif row.is_paused:
            distance = "the target is paused"
        elif row.is_behind:
            distance = "after an older one of its key"
        return _two_lines(readable.utc(row.due_ms), distance)

    @display(description="last error")
    def last_error(self, row: Delivery) -> str:
        return readable.visible(row.error) or _NOTHING

    @display(description="last error")
    def short_error(self, row: Delivery) -> str:
        text = readable.visible(row.error)
        return f"{text[: _SHORT - 1]}…" if len(text) > _SHORT else text or _NOTHING

    @display(description="stored", ordering="pk")
    def stored(self, row: Delivery) -> str:
        return readable.utc(row.event.created_ms)

    @display(description="last changed")
    def changed(self, row: Delivery) -> str:
        return readable.utc(row.changed_ms)


class EventColumns(Seen):
    """What is said of an event."""

    def with_more(self, rows: QuerySet[StoredEvent]) -> QuerySet[StoredEvent]:
        return rows.defer("payload").annotate(
            is_erased=Q(payload=None), owed_count=_count(OWED, SUSPECT), dead_count=_count(DEAD)
        )

    @display(description="event")
    def event_and_id(self, row: StoredEvent) -> str:
        return _two_lines(row.type, row.event_id)

    @display(description="event id")
    def id_text(self, row: StoredEvent) -> str:
        return readable.visible(row.event_id)

    @display(description="type")
    def type_text(self, row: StoredEvent) -> str:
        return readable.visible(row.type)

    @display(description="source")
    def source_text(self, row: StoredEvent) -> str:
        return readable.visible(row.source) or _NOTHING

    @display(description="key")
    def key_text(self, row: StoredEvent) -> str:
        return readable.visible(row.key) or _NOTHING

    @display(description="caused by")
    def cause_text(self, row: StoredEvent) -> str:
        return readable.visible(row.cause) or _NOTHING

    @display(description="correlation")
    def correlation_text(self, row: StoredEvent) -> str:
        return readable.visible(row.correlation) or _NOTHING

    @display(description="trace")
    def trace_text(self, row: StoredEvent) -> str:
        return readable.visible(row.trace) or _NOTHING

    @display(description="owed")
    def owed(self, row: Any) -> int:
        return int(row.owed_count)

    @display(description="dead")
    def dead(self, row: Any) -> int:
        return int(row.dead_count)

    @display(description="emitted")
    def emitted(self, row: StoredEvent) -> str:
        return readable.utc(row.time_us // 1000)

    @display(description="stored", ordering="pk")
    def stored(self, row: StoredEvent) -> str:
        return readable.utc(row.created_ms)

    @display(description="payload")
    def payload_text(self, row: Any) -> str:
        if row.is_erased:
            return "erased"
        text, note = readable.json_text(bytes(row.payload))
        return format_html('<div class="aevents-payload"><pre>{}</pre><p>{}</p></div>', text, note)

    @display(description="payload")
    def payload_hidden(self, row: Any) -> str:
        return "erased" if row.is_erased else "not shown: that needs the permission aevents.view_payload"


class PauseColumns(Seen):
    """What is said of a pause."""

    @display(description="since")
    def since(self, row: Any) -> str:
        return f"{readable.utc(row.since_ms)} ({readable.distance(row.since_ms, row.now_ms)})"


def _two_lines(first: str, second: str) -> str:
    return format_html("{}<br><small>{}</small>", readable.visible(first), readable.visible(second))


def _count(*states: int) -> Coalesce:
    rows = tables.deliveries().filter(event_id=OuterRef("pk"), state__in=states).order_by()
    return Coalesce(Subquery(rows.values("event_id").annotate(count=Count("pk")).values("count")), 0)
