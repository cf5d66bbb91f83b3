"""Rows by plain INSERT, with the database's clock: dicts of columns in, primary keys out.

An ORM create of event and delivery costs the caller's transaction about twice as much. The clock is
that of the statement, in UTC: `now()` of PostgreSQL stands still for as long as a transaction lasts.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import BigIntegerField, Expression, Model

_NOW_MS = {
    "postgresql": "(extract(epoch from statement_timestamp()) * 1000)::bigint",
    "mysql": "(timestampdiff(microsecond, '1970-01-01', utc_timestamp(6)) div 1000)",
    "sqlite": "cast((julianday('now') - 2440587.5) * 86400000 as integer)",
}
_ROWS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Raw:
    """An SQL expression in the place of a value. `sql` is never made of anything from outside."""

    sql: str

    def plus(self, number: int) -> Raw:
        return Raw(f"{self.sql} + {int(number)}")


def now_ms(connection: BaseDatabaseWrapper) -> Raw:
    """Return the milliseconds since 1970, UTC, when the statement begins."""
    # Where the database is another one it is this machine's clock.
    return Raw(_NOW_MS.get(connection.vendor) or str(int(time.time() * 1000)))


class NowMs(Expression):
    """`now_ms` for the ORM."""

    output_field = BigIntegerField()

    def as_sql(self, compiler: Any, connection: BaseDatabaseWrapper) -> tuple[str, tuple[str | int, ...]]:
        return now_ms(connection).sql, ()


def insert(
    connection: BaseDatabaseWrapper, model: str, rows: Sequence[Mapping[str, Any]], *, returning: bool = True
) -> list[int]:
    """Insert rows, all with the same columns; return their primary keys in order."""
    keys: list[int] = []
    for some in _batches(connection, rows):
        sql, values = _statement(connection, _model(model), some)
        keys.extend(_execute(connection, _model(model), sql, values, some, returning=returning))
    return keys


def insert_with(
    connection: BaseDatabaseWrapper,
    model: str,
    rows: Sequence[Mapping[str, Any]],
    child: str,
    child_rows: Sequence[Sequence[Mapping[str, Any]]],
) -> list[tuple[int, list[int]]]:
    """Insert rows, each with its child rows; return the primary key of each and those of its children."""
    if len(rows) == 1 and connection.vendor == "postgresql" and 0 < len(child_rows[0]) <= _ROWS_AT_ONCE:
        return [_insert_in_one(connection, model, rows[0], child, child_rows[0])]
    keys = insert(connection, model, rows)
    flat = [
        {**child_row, "event_id": key}
        for key, children in zip(keys, child_rows, strict=True)
        for child_row in children
    ]
    child_keys = iter(insert(connection, child, flat) if flat else ())
    return [
        (key, list(islice(child_keys, len(children)))) for key, children in zip(keys, child_rows, strict=True)
    ]


def _insert_in_one(
    connection: BaseDatabaseWrapper,
    model: str,
    row: Mapping[str, Any],
    child: str,
    child_rows: Sequence[Mapping[str, Any]],
) -> tuple[int, list[int]]:
    """One statement and so one journey, which is what an insert costs most."""
    parent, values = _statement(connection, _model(model), [row])
    made = [{**child_row, "event_id": Raw("(SELECT id FROM made)")} for child_row in child_rows]
    children, child_values = _statement(connection, _model(child), made)
    with connection.cursor() as cursor:
        cursor.execute(
            f"WITH made AS ({parent} RETURNING id) {children} RETURNING id, event_id",
            [*values, *child_values],
        )
        found = cursor.fetchall()
    return found[0][1], [key for key, _ in found]


def _statement(
    connection: BaseDatabaseWrapper, model: type[Model], rows: Sequence[Mapping[str, Any]]
) -> tuple[str, list[Any]]:
    driver = getattr(connection, "Database")  # noqa: B009 - not in stubs
    values: list[Any] = []
    tuples = []
    for row in rows:
        places = []
        for value in row.values():
            if isinstance(value, Raw):
                places.append(value.sql)
            elif type(value) is int and -1000 < value < 1000:
                # As text: half of all values, and each parameter costs some µs. Not what is another number
                # each time, as drivers remember what they have made of a statement.
                places.append(str(value))
            elif value == "":
                places.append("''")
            else:
                places.append("%s")
                values.append(driver.Binary(value) if isinstance(value, bytes) else value)
        tuples.append(f"({', '.join(places)})")
    head = _head(connection.vendor, model._meta.db_table, tuple(rows[0]))
    return f"{head}{', '.join(tuples)}", values


@functools.lru_cache(64)
def _head(vendor: str, table: str, columns: tuple[str, ...]) -> str:
    quote = "`{}`" if vendor == "mysql" else '"{}"'
    names = ", ".join(quote.format(column) for column in columns)
    return f"INSERT INTO {quote.format(table)} ({names}) VALUES "  # noqa: S608 - names of ours


def _execute(
    connection: BaseDatabaseWrapper,
    model: type[Model],
    sql: str,
    values: list[Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    returning: bool,
) -> list[int]:
    with connection.cursor() as cursor:
        if not returning:
            cursor.execute(sql, values)
            return []
        if connection.features.can_return_rows_from_bulk_insert:
            cursor.execute(f"{sql} RETURNING id", values)
            return [key for (key,) in cursor.fetchall()]
        keys = []  # MySQL, and SQLite before 3.35: one by one
        for row in rows:
            one, its_values = _statement(connection, model, [row])
            cursor.execute(one, its_values)
            keys.append(connection.ops.last_insert_id(cursor, model._meta.db_table, "id"))
        return keys


def _batches(
    connection: BaseDatabaseWrapper, rows: Sequence[Mapping[str, Any]]
) -> Iterator[Sequence[Mapping[str, Any]]]:
    most = _ROWS_AT_ONCE
    if connection.features.max_query_params and rows:
        most = min(most, connection.features.max_query_params // len(rows[0]))
    for start in range(0, len(rows), most):
        yield rows[start : start + most]


def _model(name: str) -> type[Model]:
    return apps.get_model("aevents", name)
