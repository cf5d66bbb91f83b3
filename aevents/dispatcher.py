"""Runs the handlers of an event: an Event and a subscription in, a `Handled` out.

Async handlers run together on the server's own loop (or this process's handler loop where the server
has none), sync ones in long-lived threads that keep their database connections. Each failure stays
alone. In a user's tests all run in the test's own thread, so that they see its transaction.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import inspect
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.utils import timezone, translation

from aevents import scope, signals, store
from aevents.errors import Again, Dead
from aevents.event import Event
from aevents.home import Home
from aevents.loops import exit_lasts_s
from aevents.recent import Recent, Run
from aevents.settings import conf
from aevents.subscriptions import Subscription, handlers_of
from aevents.tables import Lease, LeaseLost
from aevents.threads import HandlerThreads, with_connections

T = TypeVar("T")
_logger = logging.getLogger("aevents")
_GRACE_S = 1.0
_Returned = tuple[Any, BaseException | None]  # what a sync handler returned, or raised
_inline: contextvars.ContextVar[bool] = contextvars.ContextVar("aevents.inline", default=False)


@dataclass(frozen=True, slots=True)
class Handled:
    """How one handler fared: `error` is None where it succeeded, now or at an earlier try."""

    handler: str
    error: str | None = None
    exception: BaseException | None = None
    again: bool = False  # it had succeeded before and was not run
    is_noted: bool = False  # its success is in the store already, together with its effect


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


def start_on_handlers_loop(work: Coroutine[Any, Any, None]) -> None:
    """Let `work` run on the loop where async handlers live; from any thread but that loop's own."""
    try:
        asyncio.run_coroutine_threadsafe(work, _home.loop())
    except BaseException:
        work.close()
        raise


async def _from_another(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, which runs on another loop, and not for ever where that loop ends first."""
    future: asyncio.Future[T] | None = None
    with contextlib.suppress(RuntimeError):  # closed a moment ago
        future = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))
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
    token = _inline.set(True)
    try:
        return await run_all(event, handlers_of(event.type))
    finally:
        _inline.reset(token)


async def run_all(event: Event, subscriptions: Sequence[Subscription]) -> list[Handled]:
    """Run these handlers together; return when all have ended."""
    if len(subscriptions) == 1:  # the rule: no task for it
        return [await run(event, subscriptions[0])]
    return await asyncio.gather(*(run(event, subscription) for subscription in subscriptions))


async def run(event: Event, subscription: Subscription, lease: Lease | None = None) -> Handled:
    """Run the handler unless it has succeeded for this event; join the run that is under way.

    `lease`: of the stored delivery. A sync handler in a transaction has done it or not by the commit.
    """
    # A test is told what its own arrival does, whatever an older test made of the same id.
    # And what the store says is owed is owed, whatever this process remembers: somebody replayed it.
    once, is_mine = (
        (Run(attempt=1), True)
        if _inline.get()
        else _recent.begin(event.identity, subscription.name, again=lease is not None)
    )
    if not is_mine:
        again = once.outcome.done()
        error = await asyncio.shield(asyncio.wrap_future(once.outcome))
        return Handled(subscription.name, error, again=again)
    began = time.monotonic()
    attempt = once.attempt if lease is None else lease.attempts + 1
    if attempt > 1:
        event = replace(event, attempt=attempt)
    exception: BaseException | None = None
    try:
        await _call(event, subscription, lease)
    except BaseException as error:  # SystemExit in a handler is the handler's failure, not ours
        exception = error
    text = None if exception is None else _text(exception)
    once.outcome.set_result(text)
    facts = {"event": event, "handler": subscription.name, "elapsed_s": time.monotonic() - began}
    if exception is None:
        if signals.is_heard(signals.handler_succeeded):
            signals.announce(signals.handler_succeeded, **facts)
        return Handled(subscription.name, is_noted=lease is not None and _is_atomic(subscription))
    if isinstance(exception, Again):
        signals.announce(signals.handler_deferred, **facts, in_s=exception.in_s)
    elif not isinstance(exception, (Dead, LeaseLost)):
        signals.announce(signals.handler_failed, **facts, error=exception)
    if _is_for_us(exception):
        raise exception
    return Handled(subscription.name, text, exception)


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except Exception:  # its __str__ is broken too; whoever waits for the outcome must get one
        return type(error).__name__


def _is_for_us(error: BaseException) -> bool:
    """Tell whether our own task is to end, or a person stops their tests; else it is the handler's."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, KeyboardInterrupt) and _inline.get()


async def _call(event: Event, subscription: Subscription, lease: Lease | None) -> None:
    with scope.entered(event, subscription.name):
        result = None
        # What a handler sets in its context, no other sees.
        context = contextvars.copy_context()
        if not subscription.is_async:
            result, error = await _in_a_thread(context, event, subscription, lease)
            if error is not None:
                raise error
            if not inspect.isawaitable(result):
                return  # else a sync function that returned a coroutine: decorated, partial
        if _inline.get():
            await _call_async(event, subscription, result)
            return
        async with _threads.for_orm(context):
            await asyncio.get_running_loop().create_task(
                _call_async(event, subscription, result), context=context
            )


async def _call_async(event: Event, subscription: Subscription, begun: Any) -> None:
    with _plain_language():
        try:
            bound = subscription.timeout_s
            async with contextlib.nullcontext() if bound is None else asyncio.timeout(bound):
                await (subscription.handler(event.payload) if begun is None else begun)
        except (SystemExit, KeyboardInterrupt) as error:  # out of a task it would end the server's loop
            if _is_for_us(error):
                raise
            raise RuntimeError(f"the handler raised {error!r}") from error


async def _in_a_thread(
    context: contextvars.Context, event: Event, subscription: Subscription, lease: Lease | None
) -> _Returned:
    if _inline.get():
        return await sync_to_async(_call_sync)(event, subscription, lease)
    work: Callable[[], _Returned] = functools.partial(
        context.run, with_connections, _call_sync, event, subscription, lease
    )
    _wait_at_exit()
    return await asyncio.get_running_loop().run_in_executor(_threads.pool, work)


def _call_sync(event: Event, subscription: Subscription, lease: Lease | None) -> _Returned:
    """Return what the handler returned and what it raised: no future carries every exception as it is."""
    try:
        with _plain_language():
            if not _is_atomic(subscription):
                return _in_time(event, subscription), None
            with transaction.atomic(using=conf().STORE):
                if lease is not None:  # first: whoever lost it must not even begin
                    store.take(lease)
                return _in_time(event, subscription), None
    except BaseException as error:
        return None, error


def _in_time(event: Event, subscription: Subscription) -> Any:
    """Call a sync handler. No thread can be stopped: what comes too late is undone and counts as failed."""
    began = time.monotonic()
    result = subscription.handler(event.payload)
    if subscription.timeout_s is not None and time.monotonic() - began > subscription.timeout_s:
        raise TimeoutError(f"the handler took longer than its timeout_s={subscription.timeout_s:g}")
    return result


def _is_atomic(subscription: Subscription) -> bool:
    """Tell whether the handler runs in a transaction of the `STORE` database."""
    if subscription.is_async or not subscription.atomic:
        return False
    alias = conf().STORE
    if alias is None:
        return False
    engine = connections.settings.get(alias, {}).get("ENGINE", "")
    return engine != "django.db.backends.dummy" if alias == DEFAULT_DB_ALIAS else True


@contextlib.contextmanager
def _plain_language() -> Iterator[None]:
    """The settings' language and time zone, whatever the request or the last handler had chosen."""
    # Only a test's own thread has a use for them afterwards; elsewhere the context ends with the handler.
    language = translation.get_language() if _inline.get() else None
    translation.deactivate()
    if not _inline.get():
        timezone.deactivate()
    try:
        with timezone.override(None) if _inline.get() else contextlib.nullcontext():
            yield
    finally:
        if language is not None:
            translation.activate(language)


async def _unless_cancelled(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` as a task of its own, which outlives a caller that is cancelled."""
    task = asyncio.get_running_loop().create_task(work)
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)
    return await asyncio.shield(task)


@functools.cache
def _wait_at_exit() -> None:
    """Let sync handlers come to their end; registered late, so that the courier sends what they emit."""
    atexit.register(_at_exit)


def _at_exit() -> None:
    left = _threads.wait(max(0.0, conf().LIMITS.EXIT_S - exit_lasts_s()))
    if left:
        _logger.error("The process ended with %d handlers undone", left)


def _after_fork() -> None:
    global _threads, _recent
    _threads, _recent = HandlerThreads(), Recent()
    _under_way.clear()
    _home.forget()


_recent = Recent()
_threads = HandlerThreads()
_home = Home()
_under_way: set[asyncio.Task[Any]] = set()
os.register_at_fork(after_in_child=_after_fork)
atexit.register(_home.end)  # registered before the courier's, so called after it
