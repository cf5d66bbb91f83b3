"""Does one subscriber of 100 that hangs for 2 s hold up the other 99?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from django.dispatch import Signal

from aevents import emit_many, signals
from benchmarks import clients
from benchmarks.duel import duel

EVENTS = 5


class Arrivals:
    """Counts deliveries, so that the healthy ones can be waited for without the hanging one."""

    def __init__(self, signal: Signal) -> None:
        self.lock = threading.Lock()
        self.enough = threading.Event()
        self.left = 0
        signal.connect(self.note, dispatch_uid="benchmarks")

    def expect(self, count: int) -> None:
        self.left = count
        self.enough.clear()

    def note(self, service: str, **_: Any) -> None:
        with self.lock:
            if service != "service-99":
                self.left -= 1
                if self.left == 0:
                    self.enough.set()


def test_the_others_beside_one_that_hangs(
    benchmark: Any, sinks: list[str], routed: Callable[..., None], settings: Any
) -> None:
    arrivals = Arrivals(signals.event_delivered)
    routed(*sinks[:99], sinks[100])
    with_hanging = settings.AEVENTS
    routed(*sinks[:99])
    without = settings.AEVENTS

    def send(configuration: dict[str, Any]) -> None:
        settings.AEVENTS = configuration
        arrivals.expect(99 * EVENTS)
        # Emitted from a thread of its own: the call itself rightly waits for the one that hangs.
        thread = threading.Thread(target=emit_many, args=([("user-created", clients.PAYLOAD)] * EVENTS,))
        thread.start()
        assert arrivals.enough.wait(10)
        thread.join(0.0)

    duel(
        benchmark,
        lambda: send(with_hanging),
        lambda: send(without),
        what="the other 99 beside one that hangs : without it",
        goal="at most 1.2 (time)",
    )
    signals.event_delivered.disconnect(dispatch_uid="benchmarks")
