"""What was handled lately: an event id and a handler in, "run it", "done" or "wait for it" out.

Bounded in time and number, in this process only. A handler is remembered as done when it has
succeeded, never before: a failed one runs again at the next try.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass

from aevents.settings import conf

_Key = tuple[str, str]


@dataclass(slots=True)
class Run:
    """One handler for one event, under way. `outcome` is None for success, else the error's text."""

    attempt: int = 1
    outcome: Future[str | None] | None = None  # made for the first who waits for it


class Recent:
    """The runs of the last minutes. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[_Key, Run] = {}
        # When, at which attempt, and whether with success. Tuples of such are no work for the collector.
        self._ended: OrderedDict[_Key, tuple[float, int, bool]] = OrderedDict()

    def begin(self, event_id: str, handler: str, *, again: bool = False) -> tuple[Run, bool]:
        """Return the handler's run and whether it is yours: then run it and say how it `end`ed.

        One that is not yours is under way and has an `outcome` to wait for, or has succeeded and has none.
        `again`: though it has succeeded before; one that is under way is joined all the same.
        """
        key = event_id, handler
        with self._lock:
            run = self._running.get(key)
            if run is not None:
                if run.outcome is None:
                    run.outcome = Future()
                    run.outcome.set_running_or_notify_cancel()  # nobody who waits for it can cancel it
                return run, False
            attempt, succeeded = 0, False
            ended = self._ended.get(key)
            if ended is not None and ended[0] > time.monotonic() - conf().LIMITS.REMEMBER_S:
                _, attempt, succeeded = ended
            if succeeded and not again:
                return Run(attempt), False
            run = self._running[key] = Run(attempt + 1)
            return run, True

    def end(self, event_id: str, handler: str, run: Run, error: str | None) -> None:
        """Say how the run that was yours fared: None for success, else the error's text."""
        key, now = (event_id, handler), time.monotonic()
        with self._lock:
            self._running.pop(key, None)
            if key in self._ended:
                del self._ended[key]  # a new one stands at the end
            self._ended[key] = now, run.attempt, error is None
            self._forget(now)
        if run.outcome is not None:
            run.outcome.set_result(error)

    def _forget(self, now: float) -> None:
        limits, ended = conf().LIMITS, self._ended
        horizon = now - limits.REMEMBER_S
        while ended:
            oldest = next(iter(ended))
            if len(ended) <= limits.REMEMBER and ended[oldest][0] > horizon:
                return
            del ended[oldest]
