"""Emits as hard as it can, from many threads and tasks at once, and tells how that went.

    python -m tests.load_emitter '{"AEVENTS": {...}, "phases": [["well", 2.0], ["all", 5.0]], ...}'

A process of its own, so that its memory is the emitter's. Prints one line of JSON for each phase, an
event type and how many seconds it is emitted for; `healthy` names the services to wait for at the end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django
from django.conf import settings

MIB = 1024 * 1024


def resident_mib() -> float:
    """Return how much memory this process has, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


class Losses(logging.Handler):
    """Counts the log's lines of lost events, by service."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.of: Counter[str] = Counter()
        self.others: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("Lost "):
            self.of[record.service] += 1  # type: ignore[attr-defined]  # extra=
        else:
            self.others.append(text)


class Emitters:
    """Threads and tasks that emit one after the other until the time is over."""

    def __init__(self, threads: int, tasks: int, payload: Any) -> None:
        self._threads = threads
        self._tasks = tasks
        self._payload = payload
        self._lock = threading.Lock()

    def run(self, event_type: str, seconds: float) -> dict[str, Any]:
        self.calls = 0
        self.outcomes: Counter[str] = Counter()
        began = time.monotonic()
        self._ends = began + seconds
        running = [threading.Thread(target=self._emits, args=(event_type,)) for _ in range(self._threads)]
        if self._tasks:
            running.append(threading.Thread(target=lambda: asyncio.run(self._aemits_all(event_type))))
        for thread in running:
            thread.start()
        most_mib = resident_mib()
        while any(thread.is_alive() for thread in running):
            time.sleep(0.02)
            most_mib = max(most_mib, resident_mib())
        for thread in running:
            thread.join()
        return {
            "event": event_type,
            "calls": self.calls,
            "calls_a_second": self.calls / (time.monotonic() - began),
            "most_mib": most_mib,
            "outcomes": self.outcomes,
        }

    def _emits(self, event_type: str) -> None:
        from aevents import emit

        count, note = self._counting()
        while time.monotonic() < self._ends:
            count(emit(event_type, self._payload))
        note()

    async def _aemits_all(self, event_type: str) -> None:
        await asyncio.gather(*(self._aemits(event_type) for _ in range(self._tasks)))

    async def _aemits(self, event_type: str) -> None:
        from aevents import aemit

        count, note = self._counting()
        while time.monotonic() < self._ends:
            count(await aemit(event_type, self._payload))
        note()

    def _counting(self) -> tuple[Callable[[Any], None], Callable[[], None]]:
        calls, outcomes = 0, Counter[str]()

        def count(emission: Any) -> None:
            nonlocal calls
            calls += 1
            outcomes.update(f"{result.service} {result.outcome}" for result in emission.results)

        def note() -> None:
            with self._lock:
                self.calls += calls
                self.outcomes += outcomes

        return count, note


def main(given: dict[str, Any]) -> None:
    settings.configure(INSTALLED_APPS=["aevents"], AEVENTS=given["AEVENTS"])
    django.setup()
    from aevents import signals

    losses = Losses()
    logging.getLogger("aevents").addHandler(losses)
    logging.getLogger("aevents").propagate = False
    arrived: Counter[str] = Counter()

    def count(service: str, **_: Any) -> None:
        arrived[service] += 1

    signals.event_delivered.connect(count)
    emitters = Emitters(given["threads"], given["tasks"], {"text": "x" * given["payload_bytes"]})
    calls = 0
    for event_type, seconds in given["phases"]:
        done = emitters.run(event_type, seconds)
        calls += done["calls"]
        print(json.dumps(done), flush=True)
    ends = time.monotonic() + 20
    while any(arrived[name] < calls for name in given["healthy"]) and time.monotonic() < ends:
        time.sleep(0.01)
    print(json.dumps({"calls": calls, "arrived": arrived, "lost": losses.of, "log": losses.others[-5:]}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
