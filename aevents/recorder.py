"""In a user's tests: what was emitted, in place of what would have been sent.

An event whose transaction is still open counts as emitted (a test's own transaction never commits);
one whose savepoint was rolled back does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.db.backends.base.base import BaseDatabaseWrapper

from aevents import commits
from aevents.emission import Result
from aevents.event import Event


@dataclass(slots=True, eq=False)
class Recorded:
    """One emitted event, the services it goes to, and whether it still may go."""

    event: Event
    services: tuple[str, ...]
    still_counts: Callable[[], bool]


# Bounded, as a suite may never ask for it.
_records: deque[Recorded] = deque(maxlen=10_000)


def record(
    event: Event, services: tuple[str, ...], waits_for: Sequence[BaseDatabaseWrapper] = ()
) -> tuple[Result, ...]:
    """Note an event that would leave now, or at the commit of these; return the results of a good day."""
    if not waits_for:
        _records.append(Recorded(event, services, lambda: True))
        return tuple(Result(name, "delivered", 1) for name in services)
    pending = commits.Pending(lambda: None, waits_for)
    _records.append(Recorded(event, services, pending.still_counts))
    return tuple(Result(name, "queued") for name in services)


def recorded() -> list[Recorded]:
    """Return what was emitted since `clear`, in order, without what was rolled back."""
    return [entry for entry in _records if entry.still_counts()]


def clear() -> None:
    """Forget everything recorded."""
    _records.clear()
