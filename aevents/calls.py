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
import time
from collections.abc import Callable, Iterator
from typing import Any

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.utils import timezone, translation

from aevents import scope, store
from aevents.event import Event
from aevents.loops import exit_lasts_s, start_task
from aevents.settings import conf
from aevents.subscriptions import Subscription
from aevents.tables import Lease
from aevents.threads import HandlerThreads, with_connections

_logger = logging.getLogger("aevents")
_Returned = tuple[Any, BaseException | None]  # what a sync handler returned, or raised
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
    # What a handler sets in its context, no other sees.
    context = contextvars.copy_context()
    context.run(scope.enter, event, subscription.name)
    result = await _call_if_sync(context, event, subscription, lease)
    if not (subscription.is_async or inspect.isawaitable(result)):
        return  # else a sync function that returned a coroutine: decorated, partial
    thread = _threads.lend_for_orm(context)
    try:
        context.run(_forget_language)
        await start_task(_call_async(event, subscription, result), context)
    finally:
        renewed = _threads.take_back(thread)
        if renewed is not None:
            await asyncio.wrap_future(renewed)


async def _call_if_sync(
    context: contextvars.Context, event: Event, subscription: Subscription, lease: Lease | None
) -> Any:
    if subscription.is_async:
        return None
    result, error = await _in_a_thread(context, event, subscription, lease)
    if error is not None:
        raise error
    return result


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
            if not is_atomic(subscription):
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


def is_atomic(subscription: Subscription) -> bool:
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
    if not _inline.get():  # only a test's own thread has a use for its own afterwards
        _forget_language()
        yield
        return
    language = translation.get_language()
    translation.deactivate()
    try:
        with timezone.override(None):
            yield
    finally:
        if language is not None:
            translation.activate(language)


def _forget_language() -> None:
    translation.deactivate()
    timezone.deactivate()


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
