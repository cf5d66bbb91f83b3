"""What this service owns: an event that arrived in, the answer to give out; its handlers run to their end.

With `INBOX` it is stored first and answered at once. Without, the answer waits for the handlers, but
no longer than `ANSWER_S`: who still runs then, and who has failed, is stored. All of it happens on the
handlers' loop.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from aevents import claims, dispatcher, outage, outcomes, replies, retry, signals, store, tables
from aevents.answer import Answer
from aevents.claims import Claimed
from aevents.dispatcher import Ended, Handled, Started
from aevents.event import Event
from aevents.keeper import keeper
from aevents.loops import exit_lasts_s, start_task
from aevents.settings import conf
from aevents.store import Entry, Owed
from aevents.subscriptions import Subscription, handler_named, handlers_of
from aevents.tables import IN, Lease, LeaseLost

_UNKNOWN_S = 60.0
_LOOK_EVERY_S = 0.01
_PATIENCE_S = 8.0  # for the store, while an emitter waits no longer than 10 s
_logger = logging.getLogger("aevents")
_running: dict[int, Lease] = {}  # stored deliveries that are with their handlers now


async def take_in(event: Event) -> Answer:
    """Own the event, or say why not; the answer is given as soon as that is certain."""
    subscriptions = handlers_of(event.type)
    if not subscriptions:
        return replies.of_handlers(event, [])
    if conf().INBOX and tables.why_not() is None:
        return await _store_first(event, subscriptions)
    return await _run_first(event, subscriptions)


def room() -> int:
    """Return how many more stored deliveries this process has a use for now."""
    return max(0, conf().LIMITS.HANDLERS - len(_running))


def running() -> int:
    """Return how many stored deliveries are with their handlers."""
    return len(_running)


def begin(claimed: Sequence[Claimed]) -> None:
    """Let claimed deliveries run; from any thread but the handlers' own."""
    begun = []
    for each in claimed:
        subscription = handler_named(each.event.type, each.target)
        if subscription is None:  # the name is subscribed, but to other types: wait for another deploy
            outcomes.given_back(each.lease, _UNKNOWN_S)
        else:
            _begin(each.lease)
            begun.append((each.event, subscription, each.lease))
    try:
        dispatcher.start_on_handlers_loop([_run(*each) for each in begun])
    except Exception as error:  # no loop, no file for one: whatever it is, they are nobody's now
        outage.tell("Handlers cannot be started", error)
        for _, _, lease in begun:
            _running.pop(lease.id, None)
            outcomes.given_back(lease, 1.0)


def _begin(lease: Lease) -> None:
    _give_back_at_exit()
    _running[lease.id] = lease


@functools.cache
def _give_back_at_exit() -> None:
    """Give back what an ending process has not begun; registered late, so that the store still works then."""
    atexit.register(lambda: end(max(0.0, conf().LIMITS.EXIT_S - exit_lasts_s())))


def end(timeout_s: float) -> int:
    """Wait for what runs, at most `timeout_s`, then give back the leases of the rest; return how many."""
    ends = time.monotonic() + timeout_s
    while _are_running() and time.monotonic() < ends:
        time.sleep(_LOOK_EVERY_S)
    left = list(_running.values())
    for lease in left:
        keeper.holdings.let_go(lease)
        outcomes.given_back(lease)
    return len(left)


def _are_running() -> bool:
    # A handler's row that is still on its way into the store is in no lease yet.
    return bool(_running) or any(task.get_loop().is_running() for task in tuple(_tasks))


# With INBOX


async def _store_first(event: Event, subscriptions: Sequence[Subscription]) -> Answer:
    entry = entry_of(event, subscriptions, room())
    patience_s = conf().LIMITS.ANSWER_S
    try:
        (asked,) = keeper.ask_all(store.arrive, [entry], patience_s=patience_s)
        leases = await outcomes.in_time(asked, patience_s + 1.0)
    except Exception as error:
        return replies.not_stored(event, error)
    return stored(event, subscriptions, leases)


def entry_of(event: Event, subscriptions: Sequence[Subscription], free: int) -> Entry:
    """Return what is stored of an arrival, where this process has a use for so many deliveries more."""
    # What has a key waits for its turn; and when this process has enough, whoever relays may have it.
    is_leased = event.key is None and free >= len(subscriptions)
    owed = (Owed(each.name, is_leased and not claims.is_paused(IN, each.name)) for each in subscriptions)
    return Entry(IN, event, tuple(owed))


def stored(
    event: Event, subscriptions: Sequence[Subscription], leases: Sequence[Lease | None] | None
) -> Answer:
    """Return the answer to an arrival that was stored, now or before, and let its handlers begin."""
    if leases is None:
        signals.announce(signals.event_duplicate, event=event)
        return Answer(200, {"id": event.id, "status": "duplicate"})
    for subscription, lease in zip(subscriptions, leases, strict=True):
        if lease is not None:
            _begin(lease)
            _keep(asyncio.get_running_loop().create_task(_run(event, subscription, lease)))
    if None in leases:
        keeper.begin(at_once=True)
    return Answer(202, {"id": event.id, "status": "stored"})


async def _run(event: Event, subscription: Subscription, lease: Lease) -> None:
    """Run one handler for a stored delivery and note how it fared."""
    keeper.holdings.hold(lease)
    try:
        handled = await dispatcher.run(event, subscription, lease)
    except BaseException:
        outcomes.given_back(lease)
        raise
    finally:
        _running.pop(lease.id, None)
        keeper.holdings.let_go(lease)
    _note(event, handled, lease)


def _note(event: Event, handled: Handled, lease: Lease) -> None:
    if handled.error is None:
        if handled.is_noted:
            keeper.put(store.sweep, lease.event_pk)
            if lease.is_keyed:
                keeper.look_in(0.0)
        else:
            outcomes.succeeded(lease)
        return
    error = handled.exception or RuntimeError(handled.error)
    if isinstance(error, LeaseLost):
        return
    if outage.passes(error) and lease.losses < tables.SUSPECT_AFTER:
        # The database's trouble, not the handler's: no attempt is spent. But not for ever.
        in_s = random.uniform(0.1, 1.0)  # noqa: S311 - not a secret
        setback = store.Setback(
            lease, lease.attempts, lease.refusals, in_s, handled.error, losses=lease.losses + 1
        )
        keeper.put(store.set_back, setback)
        keeper.look_in(in_s)
        return
    outcomes.failed(event, handled.handler, lease, error, handled.error)


# Without


async def _run_first(event: Event, subscriptions: Sequence[Subscription]) -> Answer:
    if tables.why_not() is not None:
        return replies.of_handlers(event, await dispatcher.run_all(event, subscriptions))
    tasks = begin_all(event, subscriptions)
    waiting = [each for each in tasks.values() if isinstance(each, asyncio.Task)]
    if not all(task.done() for task in waiting):
        await asyncio.wait(waiting, timeout=conf().LIMITS.ANSWER_S)
    return await concluded(event, tasks)


def begin_all(event: Event, subscriptions: Sequence[Subscription]) -> dict[str, Started]:
    """Let the handlers of an event that is not stored begin; return what runs, by their names."""
    started = {each.name: dispatcher.start(event, each) for each in subscriptions}
    for each in started.values():
        if isinstance(each, asyncio.Task):
            _keep(each)
    return started


async def concluded(event: Event, tasks: Mapping[str, Started]) -> Answer:
    """Return the answer; what runs still, and what has failed, is stored first."""
    owed = [name for name, task in tasks.items() if not task.done() or _failed(task)]
    if owed and await _store_rest(event, {name: tasks[name] for name in owed}):
        return Answer(202, {"id": event.id, "status": "stored"})
    handled = [each.result() if isinstance(each, Ended) else await each for each in tasks.values()]
    return replies.of_handlers(event, handled)


async def _store_rest(event: Event, tasks: Mapping[str, Started]) -> bool:
    """Store what the handlers of `tasks` still owe, having failed or not ended; tell whether it is."""
    owed: list[Owed] = []
    running: dict[str, asyncio.Task[Handled]] = {}
    for name, task in tasks.items():
        if isinstance(task, Ended) or task.done():
            text = task.result().error or ""
            later = retry.later(0, 0, task.result().exception or RuntimeError(text))
            owed.append(Owed(name, False, later.in_s, later.attempts, later.refusals, text, later.is_dead))
        else:
            running[name] = task
            owed.append(Owed(name, is_leased=True, error="it was still running"))
    entry = Entry(IN, event, tuple(owed))
    (adding,) = keeper.ask_all(store.add, [entry], patience_s=_PATIENCE_S)

    def stored(leases: tuple[Lease | None, ...]) -> None:
        for entry, lease in zip(owed, leases, strict=True):
            if entry.is_dead:
                outcomes.died(event, entry.target, entry.attempts, entry.error)
            if lease is not None:
                _begin(lease)
                _keep(start_task(_follow(event, running[entry.target], lease)))

    added = start_task(_when_added(adding, stored))
    _keep(added)
    if running and len(running) == len(tasks):
        # On SQLite a handler's own transaction may be what the store waits for: then it ends first.
        ended = asyncio.gather(*running.values(), return_exceptions=True)
        first: tuple[asyncio.Future[Any], ...] = (added, ended)
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and not added.done() and not any(map(_failed, running.values())):
            return False  # all has succeeded; the row that is still to come is removed when it is there
    return await asyncio.shield(added)


async def _when_added(adding: Future[Any], stored: Any) -> bool:
    try:
        stored(await asyncio.wrap_future(adding))
    except Exception as error:
        outage.tell("What handlers owe could not be stored", error)
        return False
    return True


async def _follow(event: Event, task: asyncio.Task[Handled], lease: Lease) -> None:
    """Note how a handler fared that was running when its delivery was stored."""
    keeper.holdings.hold(lease)
    try:
        handled = await asyncio.shield(task)
    except BaseException:
        outcomes.given_back(lease)
        raise
    finally:
        _running.pop(lease.id, None)
        keeper.holdings.let_go(lease)
    _note(event, handled, lease)


def _failed(task: Started) -> bool:
    return task.done() and task.result().error is not None


_tasks: set[asyncio.Task[Any]] = set()  # loops hold tasks weakly


def _keep(task: asyncio.Task[Any]) -> None:
    if task.done():
        _done(task)
        return
    _tasks.add(task)
    task.add_done_callback(_done)


def _done(task: asyncio.Task[Any]) -> None:
    _tasks.discard(task)
    if not task.cancelled():
        with contextlib.suppress(BaseException):
            task.exception()


def _forget() -> None:
    _running.clear()
    _tasks.clear()


os.register_at_fork(after_in_child=_forget)
