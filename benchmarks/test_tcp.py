"""How many single events over TCP beside single events over HTTP, when batches are off on both ways?

64 emitters, each awaiting its own event, signed and verified, a handler that does nothing. HTTP goes into the
short way in under uvicorn at its quickest, TCP into a listener as the worker's.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aevents.courier import courier
from benchmarks import clients
from benchmarks.rig import contest, serving

WIDTH, COUNT = 64, 3_200


def test_single_events_over_tcp_beside_http(
    benchmark: Any, loop: asyncio.AbstractEventLoop, signed_receiver: str, settings: Any
) -> None:
    def over(url: str) -> float:
        settings.AEVENTS = {
            "SERVICE": "benchmarks",
            "ENABLED": True,
            "SECRETS": [clients.SECRET],
            "SERVICES": {url.partition(":")[0]: url},
            "SUBSCRIPTIONS": {"user-created": [url.partition(":")[0]]},
            "LIMITS": {"BATCH": 1, "IN_FLIGHT": WIDTH},
        }
        began = time.perf_counter()
        loop.run_until_complete(clients.at_a_time(WIDTH, COUNT, clients.emit))
        return (time.perf_counter() - began) / COUNT

    with serving("benchmarks.tcp_receiver", "{port}", env={"BENCH_SECRET": clients.SECRET}) as url:
        contest(
            benchmark,
            lambda: over(url.replace("http", "tcp")),
            lambda: over(f"{signed_receiver}/events/"),
            what="aemit over TCP, one event at a time : over HTTP, 64 emitters, no batches",
            goal="at least 3 (rate)",
            is_rate=True,
        )
        courier.close(5.0)
