"""`emit` and `aemit`: a type and a payload in, an Emission out, the event on its way.

validate and encode -> route -> (wait for the caller's transactions) -> courier -> wait for results.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError

from aevents import commits, log, outbox, recorder, routes, scope, signals
from aevents.composer import make_event
from aevents.courier import courier
from aevents.emission import Emission, Result
from aevents.errors import InvalidEvent
from aevents.event import MAX_TYPE_LENGTH, Event
from aevents.keeper import keeper
from aevents.loops import is_in_a_loop
from aevents.returns import Returns
from aevents.settings import conf, is_recording, is_strict
from aevents.shipment import Parcel, Shipment, pack
from aevents.transports.base import Destination

_logger = logging.getLogger("aevents")
_has_warned = threading.Event()
_NONE_YET: Iterator[None] = itertools.repeat(None)
log.connect()


def emit(event_type: str, payload: Any, *, key: str | None = None) -> Emission:
    """Send an event to every service subscribed to it, and say how each one fared. Never raises.

    Waits for the services at most 5 s; what does not get through is `parked`, stored and tried again.
    Inside `atomic()` nothing leaves before the commit and nothing after a rollback; inside a handler,
    and where an event loop runs, the event is handed over and not waited for. With `OUTBOX` it is
    stored first, in the caller's transaction: a database error of that passes, and nothing else does.
    `key`: what has the same key arrives in the order in which it was stored. `payload` is a dict of what
    Django's JSON encoder takes, encoded at once. What is wrong with the call itself is logged and
    returned as `failed` (`InvalidEvent` under `STRICT`).
    """
    return emit_many([(event_type, payload)], key=key)[0]


async def aemit(event_type: str, payload: Any, *, key: str | None = None) -> Emission:
    """Send an event to every service subscribed to it, and say how each one fared. Never raises.

    As `emit`, for async code; it joins no transaction (Django has no async one), not even that of a sync
    caller behind `async_to_sync`: with `OUTBOX` it commits the event by itself, and then returns. A
    caller that is cancelled stops waiting; the delivery goes on.
    """
    return (await aemit_many([(event_type, payload)], key=key))[0]


def emit_many(events: Iterable[tuple[str, Any]], *, key: str | None = None) -> list[Emission]:
    """As `emit` for `(event_type, payload)` pairs; what the iterable raises passes, and nothing is sent."""
    calls = _prepare_all(events, key)
    is_joining = False
    try:
        waits_for = commits.open_connections()
        if is_recording():
            waits_for = commits.opened_by_code(waits_for)
            return [_record(call, waits_for) for call in calls]
        if waits_for:
            direct = calls
            if conf().OUTBOX and outbox.joins_transaction():
                is_joining = True
                direct = [c for c in calls if c.event is None or not routes.goes_by_outbox(c.event.type)]
                _join([c for c in calls if c.event is not None and routes.goes_by_outbox(c.event.type)])
            _after_commit(direct, waits_for)
            return [call.emission() for call in calls]
        if scope.current() is not None or _is_in_a_loop():
            _ship(calls, None)
            return [call.emission() for call in calls]
        finished = threading.Lock()
        finished.acquire()
        shipment, is_awaited = _ship(calls, finished.release)
        patience_s = conf().LIMITS.CALL_S
    except Exception as error:
        if is_joining and isinstance(error, DatabaseError):
            raise  # the caller's transaction is broken: event and data fail together
        return _broken(calls, error)
    if is_awaited:  # outside: what a signal handler raises here (a time limit) is the caller's
        finished.acquire(timeout=patience_s)
    return _emissions(calls, shipment)


async def aemit_many(events: Iterable[tuple[str, Any]], *, key: str | None = None) -> list[Emission]:
    """As `aemit` for `(event_type, payload)` pairs; returns their Emissions in order."""
    calls = _prepare_all(events, key)
    try:
        if is_recording():
            return [_record(call, []) for call in calls]
        if scope.current() is not None:
            _ship(calls, None)
            return [call.emission() for call in calls]
        loop = asyncio.get_running_loop()
        finished: asyncio.Future[None] = loop.create_future()
        returns = Returns.to(loop)
        shipment, is_awaited = _ship(calls, lambda: returns.put(finished, at_once=courier.is_idle), loop)
        if is_awaited:
            await returns.within(conf().LIMITS.CALL_S, finished)
        else:
            await asyncio.sleep(0)  # who emits in a circle still leaves the others their turn
        return _emissions(calls, shipment)
    except Exception as error:
        return _broken(calls, error)


def flush(timeout_s: float = 5.0) -> bool:
    """Wait until all that was handed over is delivered or given up, at most `timeout_s` seconds.

    Returns whether that was reached. For scripts and prefork pools that leave by `os._exit`; the
    ordinary exit of a process does it by itself.
    """
    return courier.flush(timeout_s)


@dataclass(slots=True, eq=False)
class _Call:
    """One event that was asked for: made and routed, or the reason why not."""

    event_type: str
    event: Event | None = None
    destinations: tuple[Destination, ...] = ()
    error: str | None = None

    def emission(self, results: Iterator[Result | None] = _NONE_YET) -> Emission:
        """Return the Emission with the next of `results`; a service without one yet is `queued`."""
        # In this order: zip asks for no result that it has no destination for.
        pairs = zip(self.destinations, results, strict=False)
        return Emission(
            self.event.id if self.event is not None else "",
            self.event_type,
            tuple([found or Result(destination.name, "queued") for destination, found in pairs]),
            self.error,
        )


def _prepare_all(events: Iterable[tuple[str, Any]], key: str | None) -> list[_Call]:
    if not isinstance(events, Iterable):
        return [_prepare(events, key)]
    return [_prepare(pair, key) for pair in events]


def _prepare(pair: tuple[str, Any], key: str | None) -> _Call:
    name = ""
    try:
        is_off = scope.is_suppressed() or conf().ENABLED is False
        event_type, value = _unpacked(pair)
        name = str(event_type)[:MAX_TYPE_LENGTH]
        if is_off:
            return _Call(name)
        event = make_event(event_type, value, key)
        destinations = routes.destinations_of(event.type)
        call = _Call(event_type, event, destinations)
    except InvalidEvent as error:
        if is_strict():
            raise
        _logger.exception("An event was not emitted: %s", error, stack_info=True)
        return _Call(name, error=str(error))
    except Exception as error:
        _logger.exception("An event was not emitted", stack_info=True)
        return _Call(name, error=f"{type(error).__name__}: {error}")
    if signals.is_heard(signals.event_emitted):
        signals.announce(signals.event_emitted, event=event, services=tuple(d.name for d in destinations))
    return call


def _unpacked(pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InvalidEvent(f"emit_many takes (event_type, payload) pairs, not {type(pair).__name__}")
    return pair[0], pair[1]


def _ship(
    calls: list[_Call],
    on_done: Callable[[], None] | None,
    caller: asyncio.AbstractEventLoop | None = None,
) -> tuple[Shipment, bool]:
    """Hand the events over; return where their results will be, and whether any is worth waiting for."""
    shipment, parcels = pack(_packed(calls), on_done)
    if not parcels:
        return shipment, False
    boxed: list[Parcel] = []
    if conf().OUTBOX:
        all_parcels, parcels = parcels, []
        for parcel in all_parcels:
            (boxed if routes.goes_by_outbox(parcel.event.type) else parcels).append(parcel)
    # A destination that owes an answer for a whole call's time is not waited for again.
    overdue = frozenset(parcel.index for parcel in parcels if courier.is_overdue(parcel.destination))
    is_awaited = shipment.wait_only_for_others_than(overdue)
    if parcels:
        courier.ship(parcels, caller)
    outbox.send(boxed)
    keeper.begin()
    return shipment, is_awaited


def _join(calls: list[_Call]) -> None:
    _, parcels = pack(_packed(calls), None)
    if parcels:
        outbox.join(parcels)


def _packed(calls: list[_Call]) -> list[tuple[Event, tuple[Destination, ...]]]:
    return [(call.event, call.destinations) for call in calls if call.event is not None]


def _emissions(calls: list[_Call], shipment: Shipment) -> list[Emission]:
    results = iter(shipment.results)
    return [call.emission(results) for call in calls]


def _after_commit(calls: list[_Call], waits_for: list[Any]) -> None:
    def ship() -> None:
        try:
            _ship(calls, None)
        except Exception:
            _logger.exception("Events were lost after their commit")

    if calls:
        commits.Pending(ship, waits_for)


def _record(call: _Call, waits_for: list[Any]) -> Emission:
    if call.event is None:
        return call.emission()
    services = tuple(destination.name for destination in call.destinations)
    return Emission(call.event.id, call.event_type, recorder.record(call.event, services, waits_for))


def _broken(calls: list[_Call], error: Exception) -> list[Emission]:
    _logger.error("Events were not emitted", exc_info=error)
    text = f"{type(error).__name__}: {error}"
    return [Emission(call.event.id if call.event else "", call.event_type, (), text) for call in calls]


def _is_in_a_loop() -> bool:
    if not is_in_a_loop():
        return False
    if not _has_warned.is_set():
        _has_warned.set()
        _logger.warning(
            "emit() was called where an event loop runs: the event is handed over and not waited for."
            " Use `await aemit(...)` there.",
            stack_info=True,
        )
    return True
