"""What waits for the store's thread: single jobs in, batches of one kind out, each kind in its turn."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from aevents import outage

Verb = Callable[[Sequence[Any]], Sequence[Any]]
Done = Callable[[Any, BaseException | None], None]
_AT_ONCE = 256
_logger = logging.getLogger("aevents")


@dataclass(slots=True, eq=False)
class Job:
    """One item for a verb, and who is told what came of it."""

    item: Any
    done: Done | None
    gives_up_at: float  # on time.monotonic's clock
    held_bytes: int = 0
    tries_alone: int = 0

    def tell(self, result: Any, error: BaseException | None) -> None:
        """Tell whoever waits; what they raise harms nobody else."""
        if self.done is None:
            if error is not None:
                outage.tell("The store lost track of a delivery, which will be tried again", error)
            return
        try:
            self.done(result, error)
        except Exception:
            _logger.exception("What waits for the store failed")


def asked(item: Any, gives_up_at: float) -> tuple[Job, Future[Any]]:
    """Return a job with the future of its result."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def done(result: Any, error: BaseException | None) -> None:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    return Job(item, done, gives_up_at), future


class Jobs:
    """Jobs by verb. Not safe by itself: its user holds a lock."""

    def __init__(self) -> None:
        self._by_verb: dict[Verb, deque[Job]] = {}
        #: How many are not done yet, those that were taken included, and the memory that they hold.
        self.count = 0
        self.held_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._by_verb)

    def put(self, verb: Verb, job: Job) -> None:
        """Add one."""
        self._by_verb.setdefault(verb, deque()).append(job)
        self.count += 1
        self.held_bytes += job.held_bytes

    def take(self) -> tuple[Verb, list[Job]]:
        """Return the next batch, which is to be `put_back` or `end`ed."""
        verb = next(iter(self._by_verb))
        waiting = self._by_verb.pop(verb)
        batch = [waiting.popleft() for _ in range(min(_AT_ONCE, len(waiting)))]
        if waiting:
            self._by_verb[verb] = waiting  # at the end: every kind of work has its turn
        return verb, batch

    def put_back(self, verb: Verb, batch: Sequence[Job]) -> None:
        """Let a batch wait again, before all others of its kind."""
        if batch:
            self._by_verb[verb] = deque([*batch, *self._by_verb.pop(verb, ())])

    def end(self, job: Job) -> None:
        """Count it no more."""
        self.count -= 1
        self.held_bytes -= job.held_bytes

    def expired(self) -> list[Job]:
        """Take out those that wait no longer."""
        return self._take_out(time.monotonic())

    def all(self) -> list[Job]:
        """Take out everything."""
        return self._take_out(float("inf"))

    def _take_out(self, until: float) -> list[Job]:
        found: list[Job] = []
        for verb, waiting in list(self._by_verb.items()):
            over = [job for job in waiting if job.gives_up_at <= until]
            if not over:
                continue
            found += over
            left = deque(job for job in waiting if job.gives_up_at > until)
            if left:
                self._by_verb[verb] = left
            else:
                del self._by_verb[verb]
        for job in found:
            self.end(job)
        return found
