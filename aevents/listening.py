"""Where this service listens, `LISTEN`: what brokers bring and what comes over TCP in, to the receiver.

One task for each place, which begins anew for as long as it takes when the place is lost. What a broker
brings comes on a loop of its own, which handlers cannot block.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError

from aevents import batch, dispatcher, inbox, letters, log, receiver, routes, subscriptions
from aevents.answer import Answer
from aevents.errors import DeliveryError, Refused
from aevents.loops import LoopThread, new_quickest_loop
from aevents.settings import conf
from aevents.transports import scheme_of, transport_class
from aevents.transports.base import Brought, Destination, Wanted

_logger = logging.getLogger("aevents")
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_LASTED_S = 30.0  # after which a loss is not held against the place any more
_LOOK_EVERY_S = 0.02
_REFUSED = range(400, 500)
_OFFER = {"accept-post": batch.OFFER}


def mistakes() -> list[str]:
    """Say why this service cannot listen where `LISTEN` says; what only trying can show is not looked for."""
    patterns, found = subscriptions.patterns(), []
    if routes.places() and not conf().SERVICE:
        found.append("AEVENTS['SERVICE'] is not set, and by that name brokers keep what is for this service")
    for place in routes.places():
        try:
            transport = transport_class(scheme_of(place.url)) if not place.mistake else None
        except Refused as error:
            found.append(f"{place.name}: {error}")
            continue
        if transport is None:
            found.append(place.mistake)
        elif not transport.can_listen:
            found.append(f"{place.name}: {scheme_of(place.url)}:// brings nothing, it cannot be in LISTEN")
        elif mistake := transport.mistake_in(place.url):
            found.append(f"{place.name}: its URL cannot be used: {mistake}")
        elif patterns and not transport.has_wildcards:
            found.append(
                f"{place.name}: {scheme_of(place.url)}:// has no wildcards,"
                f" and {patterns[0]!r} is subscribed to"
            )
    return found


def wanted() -> Wanted:
    """Return what the handlers of this service want."""
    types = tuple(sorted({*subscriptions.subscribed_types()} - {letters.TYPE, *subscriptions.patterns()}))
    return Wanted(conf().SERVICE, types, tuple(sorted(subscriptions.patterns())))


class Listening:
    """Listens at all places from `begin` to `end`. Used by one thread, which is none of the loops'."""

    def __init__(self) -> None:
        self._thread = LoopThread("aevents-listen", new_quickest_loop)
        self._running: list[Running] = []

    def begin(self) -> None:
        """Begin to listen at every place of `LISTEN`; nothing where there is none."""
        for place in routes.places():
            # Who waits for an answer gets it where the handlers run, as over HTTP.
            loop = self._thread.start() if _is_a_broker(place) else dispatcher.handlers_loop()
            self._running.append(Running(loop, place, wanted()))

    def end(self, timeout_s: float) -> None:
        """Be brought no more; what is being taken comes to its end, within the bound."""
        ends = time.monotonic() + timeout_s
        running, self._running = self._running, []
        for each in running:
            each.cancel()
        for each in running:
            each.wait(max(0.0, ends - time.monotonic()))
        self._thread.stop(1.0)


class Running:
    """Listening at one place, in its loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, place: Destination, what: Wanted) -> None:
        self._ended = asyncio.run_coroutine_threadsafe(self._listen(place, what), loop)
        self._loop = loop
        self._task: asyncio.Task[None] | None = None

    async def _listen(self, place: Destination, what: Wanted) -> None:
        self._task = asyncio.current_task()
        await _listen_for_ever(place, what)

    def cancel(self) -> None:
        """Ask for its end."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())

    def wait(self, timeout_s: float) -> None:
        """Wait for its end."""
        with contextlib.suppress(Exception, CancelledError):
            self._ended.result(timeout_s)


def _is_a_broker(place: Destination) -> bool:
    return transport_class(scheme_of(place.url)).is_persistent


async def _listen_for_ever(place: Destination, what: Wanted) -> None:
    scheme, pause_s = scheme_of(place.url), _PAUSE_S
    options = {key: value for key, value in conf().TRANSPORTS.get(scheme, {}).items() if key != "BACKEND"}
    transport = transport_class(scheme)(**options)
    take = _take_of_broker if transport.is_persistent else _take_and_answer
    try:
        while True:
            began = time.monotonic()
            try:
                await transport.listen(place, what, functools.partial(take, place.name))
                reason = "it ended"
            except DeliveryError as error:
                reason = str(error)
            except Exception as error:
                _logger.exception("Listening to %s failed in an unknown way", log.safe(place.name))
                reason = type(error).__name__
            pause_s = _PAUSE_S if time.monotonic() - began > _LASTED_S else min(_LONGEST_PAUSE_S, 2 * pause_s)
            wait_s = pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
            _logger.warning(
                "Nothing comes from %s, again in %.1f s: %s",
                log.safe(place.name),
                wait_s,
                reason,
                extra={"service": place.name},
            )
            await asyncio.sleep(wait_s)
    finally:
        await transport.close()


async def _take_of_broker(place: str, brought: Sequence[Brought]) -> Sequence[Answer]:
    while inbox.room() <= 0:  # noqa: ASYNC110 - other threads make room
        await asyncio.sleep(_LOOK_EVERY_S)
    answers = await receiver.receive_all(brought, peer=place)
    for at, answer in enumerate(answers):
        if answer.status in _REFUSED:
            answers[at] = await letters.keep(place, brought[at].message, answer)
    return answers


async def _take_and_answer(place: str, brought: Sequence[Brought]) -> Sequence[Answer]:
    answers = await receiver.receive_together([each.message for each in brought], peer=place)
    return [Answer(each.status, each.content, {**each.headers, **_OFFER}) for each in answers]


listening = Listening()
