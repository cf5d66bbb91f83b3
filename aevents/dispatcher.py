"""Runs the handlers of an event: an Event and a subscription in, a `Handled` out.

Async handlers run together on the server's own loop, or this process's handler loop where the server
has none. Each failure stays alone, and no handler runs twice for one event at a time.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import inspect
import os
import threading
import time
from collections.abc import Awaitable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from aevents import calls, signals, turns
from aevents.errors import Again, Dead
from aevents.event import Event
from aevents.home import Home
from aevents.loops import start_task
from aevents.recent import Recent, Run
from aevents.subscriptions import Subscription, handlers_of
from aevents.tables import Lease, LeaseLost
from aevents.threads import hide_who_waits

T = TypeVar("T")
_GRACE_S = 1.0


@dataclass(slots=True, eq=False)
class Handled:
    """How one handler fared: `error` is None where it succeeded, now or at an earlier try."""

    handler: str
    error: str | None = None
    exception: BaseException | None = None
    again: bool = False  # it had succeeded before and was not run
    is_noted: bool = False  # its success is in the store already, together with its effect


@dataclass(slots=True, eq=False)
class Ended:
    """Stands where a task would, for a handler that has ended before one was needed."""

    handled: Handled

    def done(self) -> bool:
        return True

    def result(self) -> Handled:
        return self.handled


Started = asyncio.Task[Handled] | Ended


async def on_handlers_loop(work: Coroutine[Any, Any, T], *, at_home: bool) -> T:
    """Await `work` on the loop where async handlers live.

    `at_home`: the running loop is the server's own and lives as long as the server. A caller that is
    cancelled stops waiting; the work goes on.
    """
    if at_home:
        _home.adopt(asyncio.get_running_loop())
        return await _unless_cancelled(work)
    try:
        loop = _home.loop()
    except RuntimeError:
        if threading.main_thread().is_alive():
            work.close()
            raise
        loop = asyncio.get_running_loop()  # Python 3.12 starts no thread once atexit callbacks run
    if loop is asyncio.get_running_loop():
        return await _unless_cancelled(work)
    return await _from_another(loop, work)


def handlers_loop() -> asyncio.AbstractEventLoop:
    """Return the loop where async handlers live; raises `RuntimeError` where threads cannot be had."""
    return _home.loop()


def start_on_handlers_loop(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Let all of them run on the loop where async handlers live; from any thread but that loop's own."""
    try:
        _home.loop().call_soon_threadsafe(_start_all, works)
    except BaseException:
        for work in works:
            work.close()
        raise


def _start_all(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    for work in works:
        task = start_task(work)
        if not task.done():
            _under_way.add(task)
            task.add_done_callback(_under_way.discard)


async def _from_another(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, which runs on another loop, and not for ever where that loop ends first."""
    future: asyncio.Future[T] | None = None
    with contextlib.suppress(RuntimeError):  # closed a moment ago
        running = _plain_context().run(asyncio.run_coroutine_threadsafe, work, loop)
        future = asyncio.wrap_future(running)
    while future is not None and not (await asyncio.wait({future}, timeout=_GRACE_S))[0]:  # as a shield
        if not loop.is_running():  # closed, or left as it stood
            future = None
    if future is None or future.cancelled():  # with its loop; our own task is not
        if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
            work.close()  # nobody runs it any more
        raise RuntimeError("the handlers' event loop has ended")
    return future.result()


async def run_here(event: Event) -> list[Handled]:
    """Run every handler on the running loop and its own sync thread: for tests."""
    with calls.inline():
        return await run_all(event, handlers_of(event.type))


async def run_all(event: Event, subscriptions: Sequence[Subscription]) -> list[Handled]:
    """Run these handlers together; return when all have ended."""
    if len(subscriptions) == 1:  # the rule: no task for it
        return [await run(event, subscriptions[0])]
    return await asyncio.gather(*(run(event, subscription) for subscription in subscriptions))


async def run(event: Event, subscription: Subscription, lease: Lease | None = None) -> Handled:
    """Run the handler unless it has succeeded for this event; join the run that is under way.

    `lease`: of the stored delivery. A sync handler in a transaction has done it or not by the commit.
    """
    begun = _begin(event, subscription, lease)
    return begun if isinstance(begun, Handled) else await begun


def start(event: Event, subscription: Subscription) -> Started:
    """Let the handler begin, as `run` would; a task is only made of one that waits for something."""
    begun = _begin(event, subscription, None)
    return Ended(begun) if isinstance(begun, Handled) else start_task(begun)


def _begin(
    event: Event, subscription: Subscription, lease: Lease | None
) -> Handled | Coroutine[Any, Any, Handled]:
    """Return how the handler fared, or what is still to be awaited."""
    # A test is told what its own arrival does, whatever an older test made of the same id.
    # And what the store says is owed is owed, whatever this process remembers: somebody replayed it.
    recent = None if calls.is_inline() else _recent
    once, is_mine = Run(), True
    if recent is not None:
        once, is_mine = recent.begin(event.identity, subscription.name, again=lease is not None)
    if not is_mine:
        if once.outcome is None:
            return Handled(subscription.name, again=True)
        return _joined(subscription.name, once.outcome)
    attempt = once.attempt if lease is None else lease.attempts + 1
    if attempt > 1:
        event = replace(event, attempt=attempt)
    this = _Try(event, subscription, lease, recent, once, time.monotonic())
    if recent is None or not subscription.is_async:
        return this.awaited(calls.call(event, subscription, lease))
    begun = calls.begin(event, subscription)
    return this.ended(begun.error()) if begun.is_over() else this.awaited(begun.ended())


async def _joined(handler: str, outcome: Future[str | None]) -> Handled:
    return Handled(handler, await asyncio.shield(asyncio.wrap_future(outcome)))


@dataclass(slots=True, eq=False)
class _Try:
    """One run of one handler, and all that is told and remembered of it."""

    event: Event
    subscription: Subscription
    lease: Lease | None
    recent: Recent | None
    once: Run
    began: float

    async def awaited(self, call: Awaitable[None]) -> Handled:
        """Await the handler."""
        try:
            await call
        except BaseException as error:  # SystemExit in a handler is the handler's failure, not ours
            handled = self.ended(error)
            if calls.is_for_us(error):
                raise
            return handled
        return self.ended(None)

    def ended(self, error: BaseException | None) -> Handled:
        """Note and announce how it fared."""
        name = self.subscription.name
        text = None if error is None else _text(error)
        if self.recent is not None:
            self.recent.end(self.event.identity, name, self.once, text)
        if error is None:
            if signals.is_heard(signals.handler_succeeded):
                signals.announce(signals.handler_succeeded, **self._facts())
            return Handled(name, is_noted=self.lease is not None and turns.is_atomic(self.subscription))
        if isinstance(error, Again):
            signals.announce(signals.handler_deferred, **self._facts(), in_s=error.in_s)
        elif not isinstance(error, (Dead, LeaseLost)):
            signals.announce(signals.handler_failed, **self._facts(), error=error)
        return Handled(name, text, error)

    def _facts(self) -> dict[str, Any]:
        elapsed_s = time.monotonic() - self.began
        return {"event": self.event, "handler": self.subscription.name, "elapsed_s": elapsed_s}


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except Exception:  # its __str__ is broken too; whoever waits for the outcome must get one
        return type(error).__name__


async def _unless_cancelled(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` as a task of its own, which outlives a caller that is cancelled."""
    task = start_task(work, _plain_context())
    if task.done():
        return task.result()
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)
    return await asyncio.shield(task)


def _plain_context() -> contextvars.Context:
    """Return this context without a request's language and time zone: once for all handlers of an arrival."""
    context = contextvars.copy_context()
    context.run(_forget_the_request)
    return context


def _forget_the_request() -> None:
    turns.forget_language()
    hide_who_waits()


def _after_fork() -> None:
    global _recent
    _recent = Recent()
    _under_way.clear()
    _home.forget()


_recent = Recent()
_home = Home()
_under_way: set[asyncio.Task[Any]] = set()
os.register_at_fork(after_in_child=_after_fork)
atexit.register(_home.end)  # registered before the courier's, so called after it
