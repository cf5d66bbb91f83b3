"""The process's one thread for the store: work of many callers in, done in batches, each told its end.

Nobody else waits for the database: not the courier's loop, not a server's. While the database is down
the work waits here, bounded, and is done when it is back. A fork forgets it, an exit waits for it.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from django.db import connections

from aevents import outage, tables
from aevents.holdings import Holdings
from aevents.jobs import Done, Job, Jobs, Verb, asked
from aevents.loops import is_in_a_loop, keep_for_ever, why_no_threads
from aevents.settings import conf
from aevents.threads import as_if_no_loop_ran

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 5.0
_LOOK_EVERY_S = 0.25  # while the database is down: who waits too long is told so
_FOR_EVER_S = 3600.0 * 24 * 365
_TRIES_ALONE = 3


class Keeper:
    """Works on the store in a daemon thread. Every method may be called from any thread."""

    def __init__(self) -> None:
        #: What else is done in this thread, whenever it is due: returns the seconds until the next time.
        self.tick: Callable[[], float] | None = None
        #: Whether the thread is started for that alone.
        self.may_tick: Callable[[], bool] = bool
        self._is_over = False
        self._reset()

    def _reset(self) -> None:
        self._ready = threading.Condition()
        self._jobs = Jobs()
        #: Leases of work that may take longer than one lasts.
        self.holdings = Holdings()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._is_ending = False
        self._tick_at = 0.0
        self._pause_s = 0.0
        self._connection: object = None

    def forget(self) -> None:
        """Begin anew in the child of a fork; nothing of the parent's is closed or freed."""
        keep_for_ever((self._connection, self._jobs))
        self._reset()

    @property
    def owed(self) -> int:
        """How much work is not done yet."""
        return self._jobs.count

    @property
    def is_running(self) -> bool:
        """Whether its thread runs in this very process."""
        return self._thread is not None and self._pid == os.getpid()

    def is_full(self, held_bytes: int) -> bool:
        """Tell whether more than may wait here waits already, the database being down."""
        return self._jobs.held_bytes + held_bytes > conf().LIMITS.WAITING_BYTES

    def put(
        self,
        verb: Verb,
        item: Any,
        done: Done | None = None,
        *,
        patience_s: float = _FOR_EVER_S,
        held_bytes: int = 0,
    ) -> None:
        """Have `verb([..., item, ...])` called; then `done(its result, None)`, or `done(None, error)`.

        `patience_s`: how long it may take where the database is down. Where there can be no threads it is
        done here and now; from within an event loop that cannot be: raises `RuntimeError`.
        """
        self._take(verb, [Job(item, done, time.monotonic() + patience_s, held_bytes)])

    def put_all(self, verb: Verb, items: Iterable[Any]) -> None:
        """As `put` for each; where they are many they are done together."""
        self._take(verb, [Job(item, None, time.monotonic() + _FOR_EVER_S) for item in items])

    def ask_all(self, verb: Verb, items: Iterable[Any], *, patience_s: float) -> list[Future[Any]]:
        """As `put_all`, with a future for each."""
        asked_for = [asked(item, time.monotonic() + patience_s) for item in items]
        self._take(verb, [job for job, _ in asked_for])
        return [future for _, future in asked_for]

    def _take(self, verb: Verb, jobs: Sequence[Job]) -> None:
        if self._is_over or not self._start():
            for job in jobs:
                self._do_here(verb, job)
            return
        with self._ready:
            for job in jobs:
                self._jobs.put(verb, job)
            self._ready.notify()

    def begin(self, *, at_once: bool = False) -> None:
        """Start the thread if this is a process that relays; `at_once`: and let it look now."""
        if self._thread is None and not self._is_over and self.may_tick():
            with contextlib.suppress(RuntimeError):
                self._start()
        if at_once:
            self.look_in(0.0)

    def look_in(self, seconds: float) -> None:
        """Let `tick` be called in so many seconds at the latest, where it is called at all."""
        at = time.monotonic() + seconds
        if self._thread is not None and at < self._tick_at:
            with self._ready:
                self._tick_at = min(at, self._tick_at)
                self._ready.notify()

    # Its end

    def flush(self, timeout_s: float) -> bool:
        """Wait until all work is done, at most `timeout_s`; tell whether that was reached."""
        ends = time.monotonic() + (0.0 if threading.current_thread() is self._thread else timeout_s)
        with self._ready:
            while self._jobs.count and self.is_running and (left := ends - time.monotonic()) > 0:
                self._ready.wait(min(left, 0.05))
        return self._jobs.count == 0

    def end(self, timeout_s: float, *, for_good: bool = False) -> int:
        """Do what waits, within `timeout_s`, and end the thread; return how much was given up."""
        self._is_over = self._is_over or for_good
        if not self.is_running:
            return 0
        self.flush(timeout_s)
        with self._ready:
            thread, self._is_ending = self._thread, True
            self._ready.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)
        with self._ready:
            left = self._jobs.all()
            self._jobs = Jobs()  # what a thread that did not end in time holds is not counted any more
            self._thread, self._is_ending = None, False
        for job in left:
            job.tell(None, RuntimeError("the process ended"))
        return len(left)

    # In its thread

    def _start(self) -> bool:
        """Tell whether the thread runs; raises `RuntimeError` in a loop where there can be none."""
        if self._pid != os.getpid():
            self.forget()
        if self._thread is not None:
            return True
        reason = why_no_threads()
        if reason is not None:
            if is_in_a_loop():
                raise RuntimeError(reason)
            return False
        with self._ready:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="aevents-store", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter ends
                    return False
                self._thread = thread
        return True

    def _run(self) -> None:
        try:
            while True:
                verb, jobs = self._next()
                if verb is not None:
                    self._do(verb, jobs)
                elif self._is_ending:
                    return
                self._keep()
        finally:
            connections.close_all()

    def _next(self) -> tuple[Verb | None, list[Job]]:
        """Wait for the next batch of work, or for another thing to be due."""
        with self._ready:
            if not self._jobs and not self._is_ending:
                ticks_at = self._tick_at if self.tick is not None else math.inf
                wait_s = min(ticks_at, self.holdings.due_at) - time.monotonic()
                self._ready.wait(max(0.0, min(wait_s, 60.0)))
            return self._jobs.take() if self._jobs else (None, [])

    def _keep(self) -> None:
        """Do what is due beside the work: renew leases, tick."""
        if self.holdings.are_due():
            with self._guarded("Leases could not be renewed"):
                self.holdings.renew()
        now = time.monotonic()
        if self.tick is not None and now >= self._tick_at and not self._is_ending:
            self._tick_at, wait_s = math.inf, _LAST_PAUSE_S
            with self._guarded("The relay could not look for what is owed"):
                wait_s = self.tick()
            self.look_in(wait_s)  # or sooner, if somebody said so meanwhile

    @contextlib.contextmanager
    def _guarded(self, text: str) -> Any:
        self._connection = tables.connection()
        try:
            yield
        except Exception as error:
            self._hang_up()
            outage.tell(text, error)

    def _do(self, verb: Verb, jobs: list[Job]) -> None:
        self._connection = tables.connection()
        try:
            results = verb([job.item for job in jobs])
        except Exception as error:
            self._not_done(verb, jobs, error)
            return
        self._pause_s = 0.0
        for job, result in zip(jobs, results, strict=True):
            self._end(job, result, None)

    def _not_done(self, verb: Verb, jobs: list[Job], error: Exception) -> None:
        is_passing = outage.passes(error)
        self._hang_up()
        if not is_passing and len(jobs) > 1:  # one of them is bad: the others must not suffer
            for job in jobs:
                self._do(verb, [job])
            return
        if len(jobs) == 1:
            jobs[0].tries_alone += 1
            if not is_passing or (jobs[0].tries_alone > _TRIES_ALONE and self._is_well()):
                self._end(jobs[0], None, error)
                return
        outage.tell("The store waits for its database", error)
        with self._ready:
            self._jobs.put_back(verb, jobs)
        self._rest(error)

    def _rest(self, error: Exception) -> None:
        """Let the database come to itself; who waits no longer is told the error."""
        self._pause_s = min(_LAST_PAUSE_S, self._pause_s * 2 or _FIRST_PAUSE_S)
        ends = time.monotonic() + self._pause_s
        while True:
            with self._ready:
                expired = self._jobs.expired()
            for job in expired:
                job.tell(None, error)
            left = ends - time.monotonic()
            if left <= 0 or self._is_ending:
                time.sleep(0.01)
                return
            time.sleep(min(left, _LOOK_EVERY_S))

    def _is_well(self) -> bool:
        try:
            with tables.connection().cursor() as cursor:
                cursor.execute("SELECT 1")
        except Exception:
            self._hang_up()
            return False
        return True

    def _hang_up(self) -> None:
        with contextlib.suppress(Exception):
            tables.connection().close()

    def _end(self, job: Job, result: Any, error: BaseException | None) -> None:
        with self._ready:
            self._jobs.end(job)
            if not self._jobs.count:
                self._ready.notify_all()
        job.tell(result, error)

    def _do_here(self, verb: Verb, job: Job) -> None:
        """Do it in the caller's thread: nobody waits for another one any more."""

        def work() -> None:
            try:
                (result,) = verb([job.item])
            except Exception as error:
                self._hang_up()
                job.tell(None, error)
            else:
                job.tell(result, None)

        as_if_no_loop_ran(work)


keeper = Keeper()
os.register_at_fork(after_in_child=keeper.forget)
