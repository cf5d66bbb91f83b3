"""What the admin's lists are narrowed by: a word of the address in, a query out.

No list of choices is made by reading a whole table: there may be millions of rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from django.apps import apps
from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from aevents import readable, subscriptions, tables
from aevents.rows import NowMs
from aevents.tables import DEAD, DONE, IN, OUT, OWED, SUSPECT

if TYPE_CHECKING:
    pass

LATEST = 1000  # events whose types are offered
MOST = 100  # choices
_HOUR_MS = 3600 * 1000
Choices = list[tuple[str, str]]


class ExactFilter(admin.SimpleListFilter):
    """A filter by one of its choices, or by any other text in the address."""

    def value(self) -> str | None:
        """Return the text; none holds a NUL, which PostgreSQL refuses."""
        value = super().value()
        return None if value is None or "\0" in value else value

    def offered(self) -> Iterable[str]:
        """Return what is offered."""
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        value = self.value()
        found = [] if tables.why_not() else sorted(self.offered())[:MOST]
        if value and value not in found:
            found.insert(0, value)
        return [(each, readable.visible(each)) for each in found]


class NamedFilter(admin.SimpleListFilter):
    """A filter by one of a few conditions."""

    named: ClassVar[dict[str, tuple[str, Q]]]

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        return [(name, words) for name, (words, _) in self.named.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        _, condition = self.named.get(self.value() or "", ("", Q()))
        return queryset.filter(condition)


class DirectionFilter(NamedFilter):
    """Which way."""

    title = "direction"
    parameter_name = "direction"
    named: ClassVar = {
        "out": ("out, to services", Q(direction=OUT)),
        "in": ("in, for handlers", Q(direction=IN)),
    }


class StateFilter(NamedFilter):
    """How it stands; what is being tried at this moment is owed too."""

    title = "state"
    parameter_name = "state"
    named: ClassVar = {
        "owed": ("owed", Q(state__in=(OWED, SUSPECT))),
        "leased": ("being tried now", Q(state__in=(OWED, SUSPECT), due_ms__gt=NowMs()) & ~Q(lease="")),
        "suspect": ("suspect", Q(state=SUSPECT)),
        "dead": ("dead", Q(state=DEAD)),
        "done": ("done", Q(state=DONE)),
    }


def _ages(field: str) -> dict[str, tuple[str, Q]]:
    def since(hours: int) -> Q:
        return Q(**{f"{field}__gte": NowMs() - hours * _HOUR_MS})

    return {
        "hour": ("in the last hour", since(1)),
        "day": ("in the last 24 hours", since(24)),
        "week": ("in the last 7 days", since(7 * 24)),
        "older": ("more than 7 days ago", ~since(7 * 24)),
    }


class EventAgeFilter(NamedFilter):
    """For how long an event is in the store."""

    title = "stored"
    parameter_name = "stored"
    named: ClassVar = _ages("created_ms")


class DeliveryAgeFilter(EventAgeFilter):
    """For how long its event is in the store."""

    named: ClassVar = _ages("event__created_ms")


class TargetFilter(ExactFilter):
    """To whom it is owed."""

    title = "target"
    parameter_name = "target"

    def offered(self) -> Iterable[str]:
        return targets()

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(target=self.value()) if self.value() else queryset


class EventTypeFilter(ExactFilter):
    """Of which type: those of the latest events and those with a handler here are offered."""

    title = "type"
    parameter_name = "type"
    field: ClassVar[str] = "type"

    def offered(self) -> Iterable[str]:
        latest = tables.events().order_by("-pk").values_list("type", flat=True)[:LATEST]
        return {*latest, *subscriptions.subscribed_types()}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(**{self.field: self.value()}) if self.value() else queryset


class DeliveryTypeFilter(EventTypeFilter):
    """Of which type its event is."""

    field: ClassVar[str] = "event__type"


def targets() -> list[str]:
    """Return targets in the store, `MOST` at the most; many rows of one target make it no slower."""
    connection = tables.connection()
    table = connection.ops.quote_name(apps.get_model("aevents", "Delivery")._meta.db_table)
    sql = _JUMPS if connection.vendor in ("postgresql", "sqlite") else _GROUPS
    with connection.cursor() as cursor:
        cursor.execute(sql.format(table=table, most=MOST))
        return [target for (target,) in cursor.fetchall()]


# By the index (state, direction, target, ...): from each target to the next one.
_PLACES = " UNION ALL ".join(
    f"SELECT {state} AS state, {way} AS direction"
    for state in (OWED, SUSPECT, DEAD, DONE)
    for way in (OUT, IN)
)
_JUMPS = f"""
WITH RECURSIVE found(state, direction, target) AS (
    SELECT place.state, place.direction, (
        SELECT MIN(d.target) FROM {{table}} d WHERE d.state = place.state AND d.direction = place.direction
    ) FROM ({_PLACES}) place
    UNION ALL
    SELECT found.state, found.direction, (
        SELECT MIN(d.target) FROM {{table}} d
        WHERE d.state = found.state AND d.direction = found.direction AND d.target > found.target
    ) FROM found WHERE found.target IS NOT NULL
)
SELECT DISTINCT target FROM found WHERE target IS NOT NULL LIMIT {{most}}
"""  # noqa: S608 - numbers and a table's name
# MariaDB jumps by itself ("Using index for group-by"), and does not in a recursion.
_GROUPS = """
SELECT DISTINCT target FROM (
    SELECT state, direction, target FROM {table} GROUP BY state, direction, target
) places LIMIT {most}
"""
