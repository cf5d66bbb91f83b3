"""Turns that wait for a sync handler: a queue for each handler, long-lived threads that work it off.

What waits while the threads are busy shares a hop and, where the handler has one, a transaction: for so many
turns, or for so long. Never a wait for more: a turn that finds a thread idle begins at once. A handler that
takes its time holds up nobody: more threads come to help, as many as there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

from django.db import DEFAULT_DB_ALIAS, close_old_connections, connections

from aevents import turns
from aevents.settings import conf
from aevents.subscriptions import Subscription
from aevents.threads import HandlerThreads, close_worn_connections
from aevents.turns import Turn

_AT_ONCE = 50  # fewer than the savepoints that PostgreSQL holds at no cost (64)
_SHARED_S = 0.05  # how long a transaction is shared
_LOOK_EVERY_S = 0.01  # whether threads must come to help
_SLOW_S = 0.01  # who is at one turn for longer counts as busy with something else
_REMEMBERED = 8  # turns
_QUICK_THREADS = 2  # while one waits for its commit, another one works


_Waiting = tuple[Turn, asyncio.Future[None]]


class Queue:
    """The turns of one handler. Its methods are called on an event loop, but for what the threads do."""

    def __init__(self, threads: HandlerThreads) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._busy_since: dict[object, float] = {}  # of each thread that works here, when its turn began
        self._watched_by: asyncio.AbstractEventLoop | None = None
        self._took_s: deque[float] = deque(maxlen=_REMEMBERED)

    async def taken(self, turn: Turn) -> None:
        """Wait until a thread has taken the turn."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        worker = None
        with self._lock:
            self._waiting.append((turn, future))
            if len(self._busy_since) < self._enough():
                worker = self._come()
        if worker is not None:
            self._threads.pool.submit(self._work, worker)
        elif self._watched_by is not loop:  # another one may have ended meanwhile
            self._watch(loop)
        await future

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watched_by = loop
        loop.call_later(_LOOK_EVERY_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watched_by = None
        if not self._waiting:
            return
        now = time.monotonic()
        since = list(self._busy_since.values())
        quick = sum(now - each < _SLOW_S for each in since)
        free = int(conf().LIMITS.HANDLER_THREADS) - len(since)
        for _ in range(min(len(self._waiting), self._enough() - quick, free)):
            self._threads.pool.submit(self._work, self._come())
        self._watch(loop)

    def _enough(self) -> int:
        """How many threads are enough, where none of them is at one turn for long."""
        # The quickest of the last turns: threads that wait for each other are no slow handlers.
        is_quick = min(self._took_s, default=0.0) < _SLOW_S
        return _quick_threads() if is_quick else int(conf().LIMITS.HANDLER_THREADS)

    def _note(self, worker: object) -> float:
        """Note that the worker has ended a turn; return the time."""
        now = time.monotonic()
        self._took_s.append(now - self._busy_since[worker])
        self._busy_since[worker] = now
        return now

    def _come(self) -> object:
        worker = object()
        self._busy_since[worker] = time.monotonic()
        return worker

    # In a thread

    def _work(self, worker: object) -> None:
        pool = self._threads.pool
        while self._take_turns(worker):
            if pool.is_in_demand:  # by other handlers: behind them
                close_old_connections()  # the next time it may be another thread
                pool.submit(self._work, worker)
                return

    def _take_turns(self, worker: object) -> bool:
        """Take what goes together; tell whether more waits, and this thread is to go on with it."""
        ended: list[_Waiting] = []
        try:
            close_worn_connections()
            self._take_some(worker, ended)
        except BaseException as error:  # out of the connections, not of a handler
            if not ended:
                self._next(ended)
            for turn, _ in ended:
                turn.error = turn.error or error
        with self._lock:
            stays = bool(self._waiting) and len(self._busy_since) <= self._enough()
            if not stays:
                del self._busy_since[worker]
        if not stays:
            with contextlib.suppress(Exception):
                close_old_connections()
        _tell(ended)
        return stays

    def _take_some(self, worker: object, ended: list[_Waiting]) -> None:
        first = self._next(ended)
        if first is None:
            return
        self._busy_since[worker] = time.monotonic()
        if first.subscription.batch:
            following = iter(lambda: self._next(ended, like=first), None)
            turns.take_together([first, *islice(following, int(conf().LIMITS.BATCH) - 1)])
            return  # how long that took says nothing of one turn
        following = self._following(first, worker, ended)
        if not turns.is_atomic(first.subscription):
            for turn in following:
                turns.take(turn)
        elif self._waiting:
            turns.share(following)
        else:
            turns.take(first)
            self._note(worker)

    def _following(self, first: Turn, worker: object, ended: list[_Waiting]) -> Iterator[Turn]:
        """Yield the first turn, and then those that wait, for as long as they go together."""
        ends = time.monotonic() + _SHARED_S
        turn: Turn | None = first
        while turn is not None:
            yield turn
            if self._note(worker) >= ends or len(ended) >= _AT_ONCE:
                return
            turn = self._next(ended, like=first)

    def _next(self, ended: list[_Waiting], like: Turn | None = None) -> Turn | None:
        """Take the next turn, unless it is of another subscription than `like`: one of other code."""
        with self._lock:
            if not self._waiting:
                return None
            if like is not None and self._waiting[0][0].subscription is not like.subscription:
                return None
            ended.append(self._waiting.popleft())
        return ended[-1][0]


def queue_of(subscription: Subscription, threads: HandlerThreads) -> Queue:
    """Return the queue of a handler for these threads."""
    key, queues = (subscription.event_type, subscription.name), threads.queues
    queue: Queue = queues.get(key) or queues.setdefault(key, Queue(threads))
    return queue


def _quick_threads() -> int:
    engine = connections.settings.get(conf().STORE or DEFAULT_DB_ALIAS, {}).get("ENGINE", "")
    return 1 if "sqlite" in engine else _QUICK_THREADS  # which lets only one write


def _tell(ended: Sequence[_Waiting]) -> None:
    """Let those who wait go on, in one crossing for each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for _, future in ended:
        by_loop.setdefault(future.get_loop(), []).append(future)
    for loop, futures in by_loop.items():
        with contextlib.suppress(RuntimeError):  # closed
            loop.call_soon_threadsafe(_settle, futures)


def _settle(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
