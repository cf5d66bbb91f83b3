"""What was handled lately: an event id and a handler in, "run it", "done" or "wait for it" out.

Bounded in time and number, in this process only. A handler is remembered as done when it has
succeeded, never before: a failed one runs again at the next try.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field

from aevents.settings import conf


@dataclass(slots=True)
class Run:
    """One handler for one event. `outcome` ends with None for success, else with the error's text."""

    attempt: int = 0
    outcome: Future[str | None] = field(default_factory=Future)

    @property
    def succeeded(self) -> bool:
        return self.outcome.done() and self.outcome.result() is None


class Recent:
    """The runs of the last minutes. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: OrderedDict[str, tuple[float, dict[str, Run]]] = OrderedDict()

    def begin(self, event_id: str, handler: str, *, again: bool = False) -> tuple[Run, bool]:
        """Return the handler's run and whether it is yours: then run it and settle its outcome.

        `again`: though it has succeeded before; one that is under way is joined all the same.
        """
        with self._lock:
            self._forget()
            _, runs = self._events.setdefault(event_id, (time.monotonic(), {}))
            run = runs.get(handler)
            if run is not None and (not run.outcome.done() or (run.succeeded and not again)):
                return run, False
            run = runs[handler] = Run(attempt=run.attempt + 1 if run is not None else 1)
            run.outcome.set_running_or_notify_cancel()  # nobody who waits for it can cancel it
            # Its time begins now, not with an older try of the event.
            self._events[event_id] = (time.monotonic(), runs)
            self._events.move_to_end(event_id)
            return run, True

    def _forget(self) -> None:
        limits = conf().LIMITS
        horizon = time.monotonic() - limits.REMEMBER_S
        while self._events:
            began, runs = next(iter(self._events.values()))
            if began > horizon and len(self._events) <= limits.REMEMBER:
                return
            event_id, _ = self._events.popitem(last=False)
            if any(not run.outcome.done() for run in runs.values()):
                # Still running: it goes to the young end, lest a copy starts it a second time.
                self._events[event_id] = (time.monotonic(), runs)
                return
