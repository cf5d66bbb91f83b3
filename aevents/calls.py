"""Calls one handler: an Event and a subscription in, nothing out but what the handler raised.

An async one is a task of the running loop, with one thread for its ORM calls; a sync one is called in a
long-lived thread that keeps its database connections, in a transaction where it is to have one. In a user's
tests all of it is in the test's own thread, so that they see its transaction.
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
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from asgiref.sync import sync_to_async
from django.utils import timezone, translation

from aevents import scope, turns
from aevents.event import Event
from aevents.loops import exit_lasts_s, start_task
from aevents.queues import queue_of
from aevents.settings import conf
from aevents.subscriptions import Subscription
from aevents.tables import Lease
from aevents.threads import HandlerThreads, OrmThread
from aevents.turns import Turn

_logger = logging.getLogger("aevents")
_inline: contextvars.ContextVar[bool] = contextvars.ContextVar("aevents.inline", default=False)


@contextlib.contextmanager
def inline() -> Iterator[None]:
    """Call handlers on the running loop and its own sync thread: for tests."""
    token = _inline.set(True)
    try:
        yield
    finally:
        _inline.reset(token)


def is_inline() -> bool:
    """Tell whether handlers are called so here."""
    return _inline.get()


async def call(event: Event, subscription: Subscription, lease: Lease | None) -> None:
    """Call the handler, and raise what it raised; `lease`: of the stored delivery."""
    if _inline.get():
        with scope.entered(event, subscription.name):
            result = await _call_if_sync(contextvars.copy_context(), event, subscription, lease)
            if subscription.is_async or inspect.isawaitable(result):
                with _plain_language():
                    await _call_async(event, subscription, result)
        return
    if subscription.is_async:
        await begin(event, subscription).ended()
        return
    # What a handler sets in its context, no other sees.
    context = contextvars.copy_context()
    context.run(scope.enter, event, subscription.name)
    result = await _call_if_sync(context, event, subscription, lease)
    if inspect.isawaitable(result):  # a sync function that returned a coroutine: decorated, partial
        await _begin(context, event, subscription, result).ended()


def begin(event: Event, subscription: Subscription) -> Begun:
    """Let an async handler begin, in a context of its own. It must be `is_over` or be waited for: `ended`."""
    context = contextvars.copy_context()
    context.run(scope.enter, event, subscription.name)
    return _begin(context, event, subscription, None)


def _begin(context: contextvars.Context, event: Event, subscription: Subscription, begun: Any) -> Begun:
    threads = _threads
    thread = threads.lend_for_orm(context)
    return Begun(start_task(_outcome(event, subscription, begun), context), threads, thread)


class Begun:
    """An async handler that has begun."""

    __slots__ = ("_renewed", "_thread", "_threads", "task")

    def __init__(
        self, task: asyncio.Task[BaseException | None], threads: HandlerThreads, thread: OrmThread
    ) -> None:
        self.task = task
        self._threads = threads
        self._thread: OrmThread | None = thread
        self._renewed: Future[Any] | None = None

    def is_over(self) -> bool:
        """Tell whether nothing has to be waited for: most handlers never wait for anything themselves."""
        return self.task.done() and self._take_back() is None

    def error(self) -> BaseException | None:
        """Return what the handler raised, once it is over."""
        return asyncio.CancelledError() if self.task.cancelled() else self.task.result()

    async def ended(self) -> None:
        """Wait until it has ended, and raise what it raised."""
        try:
            error = await self.task
        finally:
            renewed = self._take_back()
            if renewed is not None:
                await asyncio.wrap_future(renewed)
        if error is not None:
            raise error

    def _take_back(self) -> Future[Any] | None:
        if self._thread is not None:
            thread, self._thread = self._thread, None
            self._renewed = self._threads.take_back(thread)
        return self._renewed


async def _call_if_sync(
    context: contextvars.Context, event: Event, subscription: Subscription, lease: Lease | None
) -> Any:
    if subscription.is_async:  # in a user's tests
        return None
    turn = Turn(event, subscription, lease, context)
    if _inline.get():
        await sync_to_async(_take_inline)(turn)
    else:
        _wait_at_exit()
        await queue_of(subscription, _threads).taken(turn)
    if turn.error is not None:
        raise turn.error
    return turn.result


async def _outcome(event: Event, subscription: Subscription, begun: Any) -> BaseException | None:
    """Return what the handler raised: a task would throw it into who waits, which GeneratorExit ends."""
    try:
        await _call_async(event, subscription, begun)
    except BaseException as error:
        if is_for_us(error):
            raise
        return error
    return None


async def _call_async(event: Event, subscription: Subscription, begun: Any) -> None:
    bound = subscription.timeout_s
    try:
        if bound is None:
            await (subscription.handler(event.payload) if begun is None else begun)
        else:
            async with asyncio.timeout(bound):
                await (subscription.handler(event.payload) if begun is None else begun)
    except (SystemExit, KeyboardInterrupt) as error:  # out of a task it would end the server's loop
        if is_for_us(error):
            raise
        raise RuntimeError(f"the handler raised {error!r}") from error


def _take_inline(turn: Turn) -> None:
    with _plain_language():
        turns.take(turn)


@contextlib.contextmanager
def _plain_language() -> Iterator[None]:
    """The settings' language and time zone in a test's own thread, which has a use for its own afterwards."""
    language = translation.get_language()
    translation.deactivate()
    try:
        with timezone.override(None):
            yield
    finally:
        if language is not None:
            translation.activate(language)


def is_for_us(error: BaseException) -> bool:
    """Tell whether our own task is to end, or a person stops their tests; else it is the handler's."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, KeyboardInterrupt) and _inline.get()


@functools.cache
def _wait_at_exit() -> None:
    """Let sync handlers come to their end; registered late, so that the courier sends what they emit."""
    atexit.register(_at_exit)


def _at_exit() -> None:
    left = _threads.wait(max(0.0, conf().LIMITS.EXIT_S - exit_lasts_s()))
    if left:
        _logger.error("The process ended with %d handlers undone", left)


def _after_fork() -> None:
    global _threads
    _threads = HandlerThreads()


_threads = HandlerThreads()
os.register_at_fork(after_in_child=_after_fork)
