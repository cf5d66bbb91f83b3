"""The relay: what is owed in the store goes out again, to the courier and to the handlers of this process.

It looks in the keeper's thread, once a second and whenever there is more to do. Any number of processes
may relay: each claims only what it has a use for, and only targets that its code knows.
"""

from __future__ import annotations

import functools
import logging
import random
import sys
import time
from pathlib import Path

from django.core.signals import request_started

from aevents import batch, claims, inbox, outcomes, routes, subscriptions, tables, upkeep
from aevents.claims import Claimed, Due
from aevents.courier import courier
from aevents.errors import Refused
from aevents.keeper import keeper
from aevents.settings import conf, under_test
from aevents.shipment import pack
from aevents.tables import IN, OUT
from aevents.transports.base import Destination

POLL_S = 1.0
_SOON_S = 0.01  # while there is more to do than there is room for
_LOOK_EVERY_S = 0.1  # at all targets, while one keeps the process busy
_BLOCKED_S = 0.2  # for what is due, but not its key's turn
_TIDY_EVERY_S = 60.0
_ALONE_S = 5.0  # what a suspect waits for the process to have nothing else
_REST_S = 60.0
_ERRAND_ROWS = 512
_logger = logging.getLogger("aevents")


class Relay:
    """Claims what is due. Called by the keeper's thread only, but for `stop`."""

    def __init__(self) -> None:
        self.is_worker = False  # `manage.py aevents worker`: this process exists for it
        self.is_stopped = False
        self._tidies_at = 0.0
        self._looks_at = 0.0
        self._more: dict[tuple[int, str], Due] = {}  # those of which more is due than was claimed
        self._alone_since: float | None = None

    def may_run(self) -> bool:
        """Tell whether this process relays: servers and the worker do, other commands and tests do not."""
        if self.is_stopped or tables.why_not() is not None:
            return False
        return self.is_worker or (conf().RELAY and not under_test() and not is_command())

    def stop(self) -> None:
        """Claim no more."""
        self.is_stopped = True

    def tick(self) -> float:
        """Claim what is due and there is room for; return the seconds until the next look."""
        if not self.may_run():
            return _REST_S
        began = time.monotonic()
        looked_s = 0.0
        if self._more and began < self._looks_at:
            dues = list(self._more.values())  # looking goes through all that waits, claiming does not
        else:
            dues = claims.due()
            looked_s = time.monotonic() - began
            self._looks_at = began + max(_LOOK_EVERY_S, 10 * looked_s)
            known = {(due.direction, due.target) for due in dues}
            self._more = {place: due for place, due in self._more.items() if place in known}
        waits = self._claim_all(dues)
        now = time.monotonic()
        if now >= self._tidies_at:
            self._tidies_at = now + _TIDY_EVERY_S * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret
            if upkeep.tidy():
                self._tidies_at = now + POLL_S  # there is more
        # Where the tables are long, looking must not be all that the database does.
        return max(min(waits), 0.0 if self._more else looked_s * 2)

    def _claim_all(self, dues: list[Due]) -> list[float]:
        """Claim from each target in turn; return when to look again, by each."""
        waits = [POLL_S * random.uniform(0.8, 1.2)]  # noqa: S311 - not a secret
        random.shuffle(dues)
        suspects = [due for due in dues if due.is_suspect and due.in_s <= 0 and self._room(due)]
        if suspects:
            self._more.clear()
            return [*waits, self._claim_alone(suspects[0])]
        self._alone_since = None
        for due in dues:
            if due.is_suspect or not self._knows(due):
                continue
            if due.in_s > 0:
                waits.append(due.in_s)
                continue
            place, room = (due.direction, due.target), min(self._room(due), _ERRAND_ROWS)
            if not room:  # busy, and soon no more; or down, and then there is nothing to hurry for
                waits.append(_SOON_S if place in self._more else _BLOCKED_S)
                continue
            claimed = claims.claim(due.direction, due.target, room)
            _send(claimed)
            if len(claimed) == room:
                self._more[place] = due
            else:
                self._more.pop(place, None)
            waits.append(_SOON_S if claimed else _BLOCKED_S)
        return waits

    def _claim_alone(self, due: Due) -> float:
        """What may have ended processes runs in one that has nothing else to lose."""
        now = time.monotonic()
        self._alone_since = self._alone_since or now
        is_alone = not courier.owed and not inbox.running()
        if is_alone or now - self._alone_since > _ALONE_S:
            self._alone_since = now
            _send(claims.claim(due.direction, due.target, 1, suspects=True))
        return _SOON_S

    def _knows(self, due: Due) -> bool:
        if due.direction == OUT:
            return routes.destination_named(due.target) is not None
        return due.target in subscriptions.handler_names()

    def _room(self, due: Due) -> int:
        if not self._knows(due):
            return 0
        if due.direction == IN:
            return inbox.room()
        destination = routes.destination_named(due.target)
        return courier.room(destination) if destination is not None else 0


def _send(claimed: list[Claimed]) -> None:
    """Send what was claimed from one target on its way, together."""
    if claimed and claimed[0].direction == IN:
        inbox.begin(claimed)
        return
    out: list[Claimed] = []
    for each in claimed:
        try:
            batch.encode([each.event])  # which is quick: a lane would find out too late
            out.append(each)
        except Exception as error:  # one bad row must not keep the others from their way
            _logger.exception("A stored event cannot be delivered", extra={"event_id": each.event.id})
            text = f"{type(error).__name__}: {error}"
            outcomes.failed(each.event, each.target, each.lease, Refused(text), text)
    if not out:
        return
    destination = routes.destination_named(out[0].target) or Destination.unknown(out[0].target)
    _, parcels = pack([(each.event, [destination]) for each in out], None)
    for parcel, each in zip(parcels, out, strict=True):
        parcel.lease = each.lease
    courier.ship(parcels)


def end(timeout_s: float) -> None:
    """Claim no more, let what runs come to its end within `timeout_s`, and give back the rest."""
    relay.stop()
    ends = time.monotonic() + timeout_s
    inbox.end(timeout_s)
    courier.end(after_s=conf().LIMITS.EXIT_S - max(0.0, ends - time.monotonic()))


@functools.cache
def is_command() -> bool:
    """Tell whether this is a management command other than one that serves."""
    program = Path(sys.argv[0] if sys.argv else "")
    is_django = program.name in ("manage.py", "django-admin") or program.parts[-2:] == (
        "django",
        "__main__.py",
    )
    return is_django and not any(word.startswith(("runserver", "testserver")) for word in sys.argv[1:2])


def _at_a_request(**_: object) -> None:
    """Begin with the first request: what an earlier process left owed does not wait for an event."""
    keeper.begin()
    request_started.disconnect(dispatch_uid="aevents.relay")


relay = Relay()
keeper.tick, keeper.may_tick = relay.tick, relay.may_run
request_started.connect(_at_a_request, dispatch_uid="aevents.relay")
