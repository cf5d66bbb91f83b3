"""Does an event arrive as soon when 30,000 come in a second as when 100 do, and what does one cost alone?

Events come at random moments (Poisson), whether those before are delivered or not. A latency counts from
the moment an event was due until `aemit` knows that it was delivered: a timer of the loop is up to a
millisecond late, and what is due at one wake-up begins together, at both rates. Into the adrf view, all loops
uvloop's. Alone: one event after the other, beside a direct POST into the same view.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from aevents import aemit
from benchmarks import clients
from benchmarks.rig import ROUNDS, contest, fast_uvicorn

SLOW = 100  # events a second
LASTS_S = 2.0
OPEN_ROUNDS = 7
ALONE = 200


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fast_uvicorn("application") as url:
        yield f"{url}/through-django/"


@pytest.mark.parametrize(("quick", "goal"), [(5_000, "for comparison"), (30_000, "at most 1.5 (time)")])
def test_p99_beside_a_slow_rate(
    benchmark: Any,
    loop: asyncio.AbstractEventLoop,
    url: str,
    routed: Callable[..., None],
    quick: int,
    goal: str,
) -> None:
    routed(url)
    chance = random.Random(7)
    undelivered: list[int] = []
    p50_ms: dict[int, list[float]] = {SLOW: [], quick: []}

    def p99_s(rate: int) -> float:
        latencies, lost = loop.run_until_complete(_arrivals(rate, chance))
        undelivered.append(lost)
        latencies.sort()
        p50_ms[rate].append(round(latencies[len(latencies) // 2] * 1e3, 3))
        return latencies[int(len(latencies) * 0.99)]

    contest(
        benchmark,
        lambda: p99_s(quick),
        lambda: p99_s(SLOW),
        what=f"p99 at {quick:,} events/s : p99 at {SLOW}/s, into the adrf view",
        goal=goal,
        rounds=OPEN_ROUNDS,
    )
    # The first of each is the warm-up.
    benchmark.extra_info.update(undelivered=sum(undelivered), p50_ms={str(k): v for k, v in p50_ms.items()})


def test_alone_beside_a_direct_post(
    benchmark: Any, loop: asyncio.AbstractEventLoop, url: str, routed: Callable[..., None]
) -> None:
    routed(url)
    messages = clients.messages((ROUNDS + 1) * ALONE)
    http = loop.run_until_complete(clients.opened())

    async def post() -> None:
        await clients.post(http, url, *next(messages))

    def seconds_each(once: Callable[[], Awaitable[Any]]) -> float:
        began = time.perf_counter()
        loop.run_until_complete(clients.at_a_time(1, ALONE, once))
        return (time.perf_counter() - began) / ALONE

    contest(
        benchmark,
        lambda: seconds_each(clients.emit),
        lambda: seconds_each(post),
        what="aemit alone : a direct POST, into the adrf view",
        goal="at most 1.25 (time)",
    )
    loop.run_until_complete(http.close())


async def _arrivals(rate: int, chance: random.Random) -> tuple[list[float], int]:
    """Emit at this rate; return the latencies, and how many events were not delivered within the call."""
    dues, due = [], 0.0
    while (due := due + chance.expovariate(rate)) < LASTS_S:
        dues.append(due)
    latencies: list[float] = []
    lost = 0

    async def one(due: float) -> None:
        nonlocal lost
        emission = await aemit("user-created", clients.PAYLOAD)
        latencies.append(time.perf_counter() - due)
        lost += not emission.delivered

    tasks: list[asyncio.Task[None]] = []
    began = time.perf_counter()
    for due in dues:
        # Those that are due by now begin in one turn of the loop, as they would in a server that was busy.
        while (wait_s := began + due - time.perf_counter()) > 0:  # noqa: ASYNC110 - timers may be early
            await asyncio.sleep(wait_s)
        tasks.append(asyncio.create_task(one(began + due)))
    await asyncio.gather(*tasks)
    return latencies, lost
