"""The tables and their words: the settings in, rows and leases out. Others change them by `store.py`.

A lease is the right to work on a delivery until a moment of the database's clock. Whoever changes a
row names the lease's token, so one who was paused for too long changes nothing.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from aevents.event import Event
from aevents.settings import conf

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from aevents.models import Delivery, Pause, Seen, StoredEvent

OUT, IN = 1, 2  # models.Direction, which must not be imported before the apps are loaded
OWED, SUSPECT, DEAD, DONE = 1, 2, 3, 4  # models.State
SWITCHED_OFF = "AEVENTS['STORE'] is None"
LEASE_S = 60.0
SUSPECT_AFTER = 5  # leases that ended without a word; from then on it is tried alone
LOST_AFTER = 15  # and from then on it is dead
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class LeaseLost(Exception):
    """Somebody else has the delivery now, or it is done."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on one delivery until `ends` (on `time.monotonic`'s clock, and rather too early)."""

    id: int
    event_pk: int
    token: str
    ends: float
    attempts: int = 0
    refusals: int = 0
    losses: int = 0
    is_keyed: bool = False  # others of its key wait for its end

    def lasts(self, seconds: float) -> bool:
        """Tell whether it does not end within so many seconds."""
        return time.monotonic() + seconds < self.ends


def why_not() -> str | None:
    """Say why the settings allow for no store, or None where they do; asks no database."""
    alias = conf().STORE
    if alias is None:
        return SWITCHED_OFF
    engine = connections.settings.get(alias, {}).get("ENGINE", "")
    if not engine or (alias == DEFAULT_DB_ALIAS and engine == "django.db.backends.dummy"):
        return "there is no database"
    if not apps.is_installed("aevents"):
        return "'aevents' is not in INSTALLED_APPS"
    return None


def connection() -> BaseDatabaseWrapper:
    """Return this thread's connection to the `STORE` database."""
    return connections[conf().STORE or DEFAULT_DB_ALIAS]


def lease_s() -> float:
    """Return how long a lease lasts: longer than any try to deliver."""
    return max(LEASE_S, 3 * conf().LIMITS.ATTEMPT_S)


def seen_key(identity: str) -> str:
    """Return what an arrival is remembered by. Two services may share a database: each has its own."""
    return _hash(conf().SERVICE, identity)


def order_key(direction: int, target: str, key: str | None) -> str:
    """Return the hash of all that is delivered in one order; empty for what has no key."""
    return _hash(str(direction), target, key) if key else ""


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def new_token() -> str:
    """Return the token of one lease, never the same twice: a claim of one's own row is another lease."""
    return uuid.uuid4().hex


def event_of(row: dict[str, Any]) -> Event:
    """Return the event of a `StoredEvent`'s values."""
    return Event(
        id=row["event_id"],
        type=row["type"],
        data=bytes(row["payload"] or b""),
        source=row["source"],
        time=EPOCH + timedelta(microseconds=row["time_us"]),
        key=row["key"] or None,
        cause=row["cause"] or None,
        correlation=row["correlation"] or None,
        hops=row["hops"],
        trace=row["trace"] or None,
        id_scope=row["id_scope"],
    )


def fit(text: str) -> str:
    """Return an error's text as a column takes it: printable and not too long."""
    return (text if text.isprintable() else ascii(text))[:500]


def deliveries() -> QuerySet[Delivery]:
    """Return the deliveries in the `STORE` database."""
    rows: QuerySet[Delivery] = _rows("Delivery")
    return rows


def events() -> QuerySet[StoredEvent]:
    """Return the events."""
    rows: QuerySet[StoredEvent] = _rows("StoredEvent")
    return rows


def seen() -> QuerySet[Seen]:
    """Return what is remembered of arrivals."""
    rows: QuerySet[Seen] = _rows("Seen")
    return rows


def pauses() -> QuerySet[Pause]:
    """Return the targets that are paused."""
    rows: QuerySet[Pause] = _rows("Pause")
    return rows


def _rows(name: str) -> Any:
    return _model(name)._default_manager.using(connection().alias)


def _model(name: str) -> Any:
    return apps.get_model("aevents", name)
