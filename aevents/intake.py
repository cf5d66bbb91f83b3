"""A batch that arrived: its events in, the answer to each out, in order.

With `INBOX` they are stored together. Without, their handlers run together, a bounded number at a time;
what has not begun when an answer is due is given back, for the emitter to keep and come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

from aevents import inbox, outcomes, replies, store, tables
from aevents.answer import Answer
from aevents.dispatcher import Handled, Started
from aevents.event import Event
from aevents.keeper import keeper
from aevents.loops import start_task
from aevents.settings import conf
from aevents.subscriptions import handlers_of

AT_ONCE = 64
_CONCLUDED_S = 10.0  # a little more than the store is waited for
_under_way: set[asyncio.Task[Answer]] = set()  # loops hold tasks weakly


async def take_in_all(events: Sequence[Event], is_first: Sequence[bool] = ()) -> list[Answer]:
    """Own the events, or say of which not and why; as `inbox.take_in` for each.

    `is_first`: whether each is stored before its handlers run, without `INBOX` too, where there is a store.
    """
    if tables.why_not() is not None or not (conf().INBOX or any(is_first)):
        return await _run_all(events)
    if conf().INBOX or all(is_first):
        return await _store_all(events)
    stored = [event for event, first in zip(events, is_first, strict=True) if first]
    others = [event for event, first in zip(events, is_first, strict=True) if not first]
    found = {True: iter(await _store_all(stored)), False: iter(await _run_all(others))}
    return [next(found[first]) for first in is_first]


async def _store_all(events: Sequence[Event]) -> list[Answer]:
    subscribed = [handlers_of(event.type) for event in events]
    entries, free = [], inbox.room()
    for event, subscriptions in zip(events, subscribed, strict=True):
        if subscriptions:
            entry = inbox.entry_of(event, subscriptions, free)
            free -= sum(owed.is_leased for owed in entry.owed)
            entries.append(entry)
    results = iter(await _all_arrived(entries))
    answers = []
    for event, subscriptions in zip(events, subscribed, strict=True):
        if not subscriptions:
            answers.append(replies.of_handlers(event, []))
            continue
        found = next(results)
        is_error = isinstance(found, BaseException)
        answers.append(
            replies.not_stored(event, found) if is_error else inbox.stored(event, subscriptions, found)
        )
    return answers


async def _all_arrived(entries: Sequence[store.Entry]) -> list[Any]:
    """Return the leases of each, or the error; the loop is woken once for all of them."""
    patience_s = conf().LIMITS.ANSWER_S
    loop, all_ended = asyncio.get_running_loop(), asyncio.Event()
    lock, left = threading.Lock(), len(entries)

    def ended(_: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
        if not left:
            loop.call_soon_threadsafe(all_ended.set)

    try:
        futures = keeper.ask_all(store.arrive, entries, patience_s=patience_s)
        for future in futures:
            future.add_done_callback(ended)
        if futures:
            async with asyncio.timeout(patience_s + 1.0):
                await all_ended.wait()
    except TimeoutError as error:
        for future in futures:
            if not future.done():
                future.add_done_callback(outcomes.came_too_late)
        return [_result(future) if future.done() else error for future in futures]
    except RuntimeError as error:  # there can be no thread
        return [error] * len(entries)
    return [_result(future) for future in futures]


def _result(future: Future[Any]) -> Any:
    error = future.exception()
    return future.result() if error is None else error


async def _run_all(events: Sequence[Event]) -> list[Answer]:
    crew = _Crew(events)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(conf().LIMITS.ANSWER_S):
            await crew.ended.wait()
    crew.is_late = True
    # Where there is a store, what lasts or has failed is stored, all of it together. Without, it runs on,
    # and the emitter, which comes again with each alone, joins it.
    has_store = tables.why_not() is None
    answers: list[Answer | None] = []
    owed: list[tuple[int, Coroutine[Any, Any, Answer]]] = []
    for place, (event, tasks) in enumerate(zip(events, crew.begun, strict=True)):
        if tasks is None:
            answers.append(replies.given_back(event, "it was not its turn in time"))
        elif not all(task.done() for task in tasks.values()) and not has_store:
            answers.append(replies.given_back(event, "it takes long"))
        elif has_store and any(not task.done() or task.result().error for task in tasks.values()):
            answers.append(None)
            owed.append((place, inbox.concluded(event, tasks)))
        else:
            answers.append(replies.of_handlers(event, [task.result() for task in tasks.values()]))
    for place, found in await _concluded([(place, events[place], work) for place, work in owed]):
        answers[place] = found
    return [found for found in answers if found is not None]


async def _concluded(
    owed: Sequence[tuple[int, Event, Coroutine[Any, Any, Answer]]],
) -> list[tuple[int, Answer]]:
    """Return the answers, in the time that storing may take: a handler that lasts holds up no other event.

    Where the store is away too, its event is given back, comes again, joins the run, and may be stored then.
    """
    tasks = [start_task(work) for _, _, work in owed]
    for task in tasks:
        _under_way.add(task)
        task.add_done_callback(_under_way.discard)
    if tasks:
        await asyncio.wait(tasks, timeout=_CONCLUDED_S)
    return [
        (place, task.result() if task.done() else replies.given_back(event, "it takes long"))
        for (place, event, _), task in zip(owed, tasks, strict=True)
    ]


class _Crew:
    """The handlers of a batch, those of so many events at a time."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.begun: list[dict[str, Started] | None] = [None] * len(events)
        self.ended = asyncio.Event()
        self.is_late = False
        self._waiting = iter(enumerate(events))
        self._running = 0
        self._begin()

    def _begin(self) -> None:
        for _ in range(AT_ONCE):  # then the loop is let to others, though none of them had to wait
            if self._running >= AT_ONCE or self.is_late:
                break
            following = next(self._waiting, None)
            if following is None:
                break
            place, event = following
            tasks = self.begun[place] = inbox.begin_all(event, handlers_of(event.type))
            for task in tasks.values():
                if isinstance(task, asyncio.Task) and not task.done():
                    self._running += 1
                    task.add_done_callback(self._one_ended)
        else:
            asyncio.get_running_loop().call_soon(self._begin)
            return
        if not self._running:
            self.ended.set()

    def _one_ended(self, _: asyncio.Task[Handled]) -> None:
        self._running -= 1
        self._begin()
