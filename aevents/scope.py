"""Where the running code stands: inside which handler, and whether events are suppressed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from aevents.event import Event, derived_id, new_id


@dataclass(slots=True)
class Scope:
    """One run of one handler."""

    event: Event  # of several that it is called with at once, one with the most hops
    handler: str
    is_of_one: bool = True
    emitted: Counter[str] | None = None  # most emit nothing

    def next_id(self, event_type: str) -> str:
        """Return the id of the next event of this type: the same at every run for the same event."""
        if not self.is_of_one:  # who is called together changes from run to run
            return new_id()
        if self.emitted is None:
            self.emitted = Counter()
        nth = self.emitted[event_type]
        self.emitted[event_type] += 1
        return derived_id(self.event.identity, self.handler, event_type, nth)


_scope: ContextVar[Scope | None] = ContextVar("aevents.scope", default=None)
_suppressed: ContextVar[bool] = ContextVar("aevents.suppressed", default=False)


def current() -> Scope | None:
    """Return the run of the handler that this code is part of, or None."""
    return _scope.get()


def current_event() -> Event | None:
    """Return the event that the running handler was called for; None outside, and where it is of several."""
    scope = _scope.get()
    return scope.event if scope is not None and scope.is_of_one else None


def enter(event: Event, handler: str) -> None:
    """Make this context a run of `handler` for `event`, to its end."""
    _scope.set(Scope(event, handler))


def enter_many(events: Sequence[Event], handler: str) -> None:
    """Make this context a run of `handler` for all of `events`."""
    _scope.set(Scope(max(events, key=lambda event: event.hops), handler, is_of_one=False))


@contextlib.contextmanager
def entered(event: Event, handler: str) -> Iterator[None]:
    """Make this code a run of `handler` for `event`."""
    token = _scope.set(Scope(event, handler))
    try:
        yield
    finally:
        _scope.reset(token)


@contextlib.contextmanager
def suppressed(reason: str) -> Iterator[None]:
    """Emit nothing inside: neither recorded nor sent. For fixtures and imports; `reason` is for readers."""
    token = _suppressed.set(True)
    try:
        yield
    finally:
        _suppressed.reset(token)


def is_suppressed() -> bool:
    """Tell whether this code runs inside `suppressed`."""
    return _suppressed.get()
