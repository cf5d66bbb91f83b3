"""The tables of the store: what is owed, to whom, until when. Only `store.py` and `upkeep.py` use them.

Times are milliseconds since 1970 by the database's own clock, as integers: no time zone, no summer
time and no `USE_TZ` can move a lease.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

from aevents.event import MAX_TYPE_LENGTH

MAX_ERROR_LENGTH = 500


class ExactCharField(models.CharField):  # type: ignore[type-arg]  # the stubs' parameters are for checkers only
    """Text that differs where one character differs: in case or in a trailing blank too.

    MariaDB's usual collations take `Paid`, `paid` and `paid ` for one.
    """

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        parameters = super().db_parameters(connection)
        if connection.vendor == "mysql":
            is_mariadb = getattr(connection, "mysql_is_mariadb", True)
            parameters["collation"] = "utf8mb4_nopad_bin" if is_mariadb else "utf8mb4_0900_bin"
        return parameters


class Direction(models.IntegerChoices):
    """Which way an event goes."""

    OUT = 1, "out"
    IN = 2, "in"


class State(models.IntegerChoices):
    """How a delivery stands."""

    OWED = 1, "owed"  # waits for its time, or is leased
    SUSPECT = 2, "suspect"  # whoever held it vanished again and again: tried alone
    DEAD = 3, "dead"  # kept until a person replays or discards it
    DONE = 4, "done"  # kept for HISTORY_DAYS


#: A delivery in one of these keeps the later ones of its key waiting.
UNFINISHED = (State.OWED, State.SUSPECT, State.DEAD)


class StoredEvent(models.Model):
    """An event that is owed to somebody: the exact bytes, as they were emitted or as they arrived."""

    objects: ClassVar[models.Manager[StoredEvent]]

    id = models.BigAutoField(primary_key=True)
    direction = models.SmallIntegerField(choices=Direction.choices)
    event_id = ExactCharField("event id", max_length=MAX_TYPE_LENGTH)
    id_scope = models.CharField(max_length=64, blank=True, default="")  # see `Event.id_scope`: a hash
    type = ExactCharField(max_length=MAX_TYPE_LENGTH)
    source = ExactCharField(max_length=256, blank=True, default="")
    time_us = models.BigIntegerField("emitted at, µs since 1970")
    key = ExactCharField(max_length=256, blank=True, default="")
    cause = ExactCharField(max_length=256, blank=True, default="")
    correlation = ExactCharField(max_length=256, blank=True, default="")
    hops = models.IntegerField(default=0)
    trace = models.CharField(max_length=64, blank=True, default="")
    payload = models.BinaryField(null=True)  # None: erased
    created_ms = models.BigIntegerField("stored at, ms since 1970")

    class Meta:
        verbose_name = "event"
        indexes = (
            models.Index(fields=["event_id"], name="aevents_event_id"),
            models.Index(fields=["created_ms"], name="aevents_event_created"),
        )
        permissions = (("view_payload", "Can see the payload of events"),)

    def __str__(self) -> str:
        return f"{self.type} {self.event_id}"


class Delivery(models.Model):
    """One event that is owed to one target: a service where it goes out, a handler where it came in.

    It may be tried from `due_ms` on. While `lease` is not empty, whoever knows that token works on it,
    and `due_ms` is the end of the lease.
    """

    objects: ClassVar[models.Manager[Delivery]]

    id = models.BigAutoField(primary_key=True)
    # No constraint: it would cost each insert a look at the event that the same statement makes.
    event = models.ForeignKey(
        StoredEvent, on_delete=models.DO_NOTHING, related_name="deliveries", db_constraint=False
    )
    direction = models.SmallIntegerField(choices=Direction.choices)
    target = ExactCharField(max_length=MAX_TYPE_LENGTH)
    order_key = models.CharField(max_length=64, blank=True, default="")  # a hash of target and key
    state = models.SmallIntegerField(choices=State.choices, default=State.OWED)
    attempts = models.IntegerField(default=0)
    refusals = models.IntegerField(default=0)  # answers in a row that only a deploy can heal
    losses = models.IntegerField(default=0)  # leases in a row that ended without a word
    due_ms = models.BigIntegerField("due at, ms since 1970")
    lease = models.CharField(max_length=32, blank=True, default="")
    error = models.CharField(max_length=MAX_ERROR_LENGTH, blank=True, default="")
    changed_ms = models.BigIntegerField("last changed at, ms since 1970")

    class Meta:
        verbose_name_plural = "deliveries"
        indexes = (
            models.Index(fields=["state", "direction", "target", "due_ms"], name="aevents_delivery_due"),
            models.Index(fields=["order_key", "id"], name="aevents_delivery_order"),
        )

    def __str__(self) -> str:
        return f"{self.get_direction_display()} {self.target}"


class Seen(models.Model):
    """An arrival that was stored: a later copy of it is dropped. It outlasts the event."""

    objects: ClassVar[models.Manager[Seen]]

    key = models.CharField(max_length=64, primary_key=True)  # a hash of the receiver and the event id
    seen_ms = models.BigIntegerField(db_index=True)

    class Meta:
        verbose_name_plural = "seen"

    def __str__(self) -> str:
        return self.key


class Pause(models.Model):
    """A target to which nothing is delivered until a person says so."""

    objects: ClassVar[models.Manager[Pause]]

    id = models.BigAutoField(primary_key=True)
    direction = models.SmallIntegerField(choices=Direction.choices)
    target = ExactCharField(max_length=MAX_TYPE_LENGTH)
    since_ms = models.BigIntegerField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=["direction", "target"], name="aevents_one_pause"),)

    def __str__(self) -> str:
        return f"{self.get_direction_display()} {self.target}"
