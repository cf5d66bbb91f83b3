"""For your tests: what was emitted, and your handlers run on an event.

Under `manage.py test` and pytest-django no event leaves the process unless `AEVENTS["ENABLED"]` is
True; it is recorded instead, and a wrong call raises `InvalidEvent`.

    def test_signing_up_tells_the_others(emitted, client):        # pytest: the fixture `emitted`
        client.post("/sign-up/", {...})
        assert emitted.payloads("user-created") == [{"user_id": 7}]

    def test_a_welcome_mail_is_sent(db):
        deliver("user-created", {"user_id": 7})
        assert len(mail.outbox) == 1
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, overload
from unittest import TestCase

from asgiref.sync import async_to_sync

from aevents import dispatcher, recorder, subscriptions, wire
from aevents.composer import make_event
from aevents.dispatcher import Handled
from aevents.event import Event


class Emitted(Sequence[Event]):
    """The events emitted in this test so far, in order; those of a rolled back savepoint are gone.

    An event emitted inside `atomic()` counts at once, as a test's own transaction never commits.
    Equal to a list of the same `(event_type, payload)` pairs.
    """

    def __len__(self) -> int:
        return len(recorder.recorded())

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        return [entry.event for entry in recorder.recorded()][index]

    def __iter__(self) -> Iterator[Event]:
        return iter([entry.event for entry in recorder.recorded()])

    def __eq__(self, other: object) -> bool:
        return self._pairs() == other if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __repr__(self) -> str:
        return f"<Emitted {self._pairs()!r}>"

    def _pairs(self) -> list[tuple[str, Any]]:
        return [(event.type, event.payload) for event in self]

    def types(self) -> list[str]:
        """Return the event types, in order."""
        return [event.type for event in self]

    def payloads(self, event_type: str) -> list[Any]:
        """Return the payloads of one event type, in order."""
        return [event.payload for event in self if event.type == event_type]

    def services(self, event_type: str) -> list[tuple[str, ...]]:
        """Return, for each event of the type, the services it goes to."""
        return [entry.services for entry in recorder.recorded() if entry.event.type == event_type]

    def clear(self) -> None:
        """Forget what was emitted so far."""
        recorder.clear()


class EmittedMixin:
    """For Django's test cases: `self.emitted`, empty at the beginning of each test."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if TestCase in order and order.index(TestCase) < order.index(EmittedMixin):
            raise TypeError(f"{cls.__name__}: EmittedMixin must stand before the test case it goes with")

    @property
    def emitted(self) -> Emitted:
        """What was emitted in this test so far."""
        return Emitted()

    def run(self, *args: Any, **kwargs: Any) -> Any:
        recorder.clear()
        return super().run(*args, **kwargs)  # type: ignore[misc]  # a TestCase stands behind the mixin


def deliver(event_type: str, payload: Any, *, source: str = "test", key: str | None = None) -> list[Handled]:
    """Let this service's own handlers take an event, in this thread and through encode and decode.

    Returns one `Handled` for each handler. What a handler raises is raised here (several at once as
    an `ExceptionGroup`); `LookupError` where no handler is subscribed, `InvalidEvent` for a wrong call.
    """
    return async_to_sync(adeliver)(event_type, payload, source=source, key=key)


async def adeliver(
    event_type: str, payload: Any, *, source: str = "test", key: str | None = None
) -> list[Handled]:
    """As `deliver`, for async tests."""
    event = wire.decode(wire.encode(replace(make_event(event_type, payload, key), source=source)))
    if not subscriptions.handlers_of(event.type):
        alike = difflib.get_close_matches(event_type, subscriptions.subscribed_types(), n=1)
        hint = f"; did you mean {alike[0]!r}?" if alike else ""
        raise LookupError(f"no handler is subscribed to {event_type!r}{hint}")
    handled = await dispatcher.run_here(event)
    errors = [entry.exception for entry in handled if entry.exception is not None]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} handlers of {event_type!r} failed", errors)
    return handled
