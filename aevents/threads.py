"""The threads that handlers run in: a pool for sync ones, a few for the ORM calls of async ones.

They last as long as the process, so that their database connections do too, renewed between handlers
by Django's own rules. And they last to its very end: events that are emitted at exit are handled too.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
from django.db import close_old_connections, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from aevents.settings import conf

T = TypeVar("T")


class HandlerThreads:
    """Made when first needed. A fork has no threads: its child needs a new instance."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._pool: DaemonPool | None = None
        self._orm: list[OrmThread] = []
        self._queues: dict[tuple[str, str], Any] = {}

    @property
    def pool(self) -> DaemonPool:
        """The threads of sync handlers."""
        with self._lock:
            self._look_for_a_fork()
            if self._pool is None:
                self._pool = DaemonPool(conf().LIMITS.HANDLER_THREADS, "aevents-handler")
            return self._pool

    @property
    def queues(self) -> dict[tuple[str, str], Any]:
        """What waits for them, by handler: see `queues.py`."""
        with self._lock:
            self._look_for_a_fork()
            return self._queues

    def lend_for_orm(self, context: contextvars.Context) -> OrmThread:
        """Give the ORM calls of an async handler, which runs in `context`, one thread for all of them.

        Django gives each ASGI request a thread, and so a connection, of its own; a handler outlives
        its request. The thread is to be taken back.
        """
        with self._lock:
            self._look_for_a_fork()
            if not self._orm:
                self._orm = [OrmThread(f"aevents-orm-{n}") for n in range(int(conf().LIMITS.HANDLER_THREADS))]
            thread = self._orm[0]  # the rule, as most handlers wait for nothing
            if thread.users:
                thread = min(self._orm, key=OrmThread.users_of)
            thread.users += 1
        context.run(SyncToAsync.thread_sensitive_context.set, thread.context)
        return thread

    def take_back(self, thread: OrmThread) -> Future[Any] | None:
        """Take back a thread that was lent; return what the handler's end has to wait for."""
        with self._lock:  # nobody comes between the look who else is there and the renewal
            thread.users -= 1
            return thread.renew()

    def wait(self, timeout_s: float) -> int:
        """Wait until no sync handler runs, at most `timeout_s`; return how many still do."""
        return self._pool.wait(timeout_s) if self._pool is not None else 0

    def close(self) -> None:
        """End the threads and their connections, when what runs has ended."""
        for executor in (self._pool, *self._orm):
            if executor is not None:
                executor.submit(connections.close_all)
                executor.shutdown()

    def _look_for_a_fork(self) -> None:
        if self._pid != os.getpid():  # a fork in C that ran no hooks (uWSGI): the threads are not here
            self._pid, self._pool, self._orm, self._queues = os.getpid(), None, [], {}


def hide_who_waits() -> None:
    """Hide the thread of a sync middleware or WSGI server that waits for the view: it goes before ours."""
    AsyncToSync.executors.current = None


def close_worn_connections() -> None:
    """Renew this thread's connections as Django does between two requests, in the midst of much work.

    Where Django keeps none from one request to the next, what follows at once still uses the same.
    """
    for connection in connections.all(initialized_only=True):
        if connection.settings_dict["CONN_MAX_AGE"] != 0:
            connection.close_if_unusable_or_obsolete()
        else:
            _close_if_broken(connection)


class DaemonPool(Executor):
    """As `ThreadPoolExecutor`, but with threads that the end of the interpreter does not wait for.

    That one takes no more work as soon as the main thread has ended, when events may still be owed,
    and lets the process wait for a handler that hangs.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._lock = threading.Lock()
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._unfinished: set[Future[Any]] = set()
        self._is_shut = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call `fn` in a thread; here and now where there is none and none can be started."""
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        with self._lock:
            if self._is_shut:
                raise RuntimeError("these threads were shut down")
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._size:
                self._start_one()
            self._unfinished.add(future)
            future.add_done_callback(self._unfinished.discard)
            if self._threads:
                self._work.put(work)
                return future
        as_if_no_loop_ran(work)
        return future

    @property
    def is_in_demand(self) -> bool:
        """Whether more waits than there are threads free."""
        return not self._work.empty()

    def wait(self, timeout_s: float) -> int:
        """Wait until what was submitted has ended, at most `timeout_s`; return how much has not."""
        return len(wait(list(self._unfinished), timeout_s).not_done)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads when what was submitted has ended; they are gone on return where nothing runs."""
        with self._lock:
            self._is_shut = True
            for _ in self._threads:
                self._work.put(None)
        has_ended = all(future.done() for future in list(self._unfinished))
        # Who has nothing to do ends at once, and whoever looks for threads at an exit finds none of them.
        if wait or has_ended:
            for thread in self._threads:
                thread.join()

    def _start_one(self) -> None:
        name = f"{self._name}_{len(self._threads)}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        # Python 3.12 starts none any more once atexit callbacks run.
        with contextlib.suppress(RuntimeError):
            thread.start()
            self._threads.append(thread)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # it holds the event, and what came of it
            self._idle.release()


def as_if_no_loop_ran(work: Callable[[], None]) -> None:
    """Call sync code in the thread of a loop: Django's ORM refuses to work beside one."""
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        work()
    finally:
        asyncio._set_running_loop(loop)


class OrmThread(DaemonPool):
    """One thread for the ORM calls of the async handlers that share it."""

    def __init__(self, name: str) -> None:
        super().__init__(1, name)
        self.context = ThreadSensitiveContext()
        self.users = 0
        self._is_renewed = True
        SyncToAsync.context_to_thread_executor[self.context] = self

    def users_of(self) -> int:
        return self.users

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        if self._is_renewed:
            self._is_renewed = False
            super().submit(close_old_connections)  # they may have grown old since the last handler
        return super().submit(*args, **kwargs)

    def renew(self) -> Future[Any] | None:
        """Renew the connections after a handler, where any was used; return what its end has to wait for."""
        if self._is_renewed:
            return None
        self._is_renewed = self.users == 0
        with contextlib.suppress(RuntimeError):  # the interpreter ends
            renewed = super().submit(close_old_connections if self._is_renewed else _close_broken)
            if self._is_renewed:  # else another handler's call may be in the way
                return renewed
        return None


def _close_broken() -> None:
    # Another handler may be in the midst of its rows: only what is of no use to it either is closed.
    for connection in connections.all(initialized_only=True):
        _close_if_broken(connection)


def _close_if_broken(connection: BaseDatabaseWrapper) -> None:
    if connection.connection is None or connection.in_atomic_block or not connection.errors_occurred:
        return
    if not connection.is_usable():
        connection.close()
