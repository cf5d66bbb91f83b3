"""What do the two ways in cost beside a plain async Django view with the same work, and beside bare ASGI?

The short way and the bare callable answer more than aiohttp can ask: `wire_client.py` asks them, 64 at a
time, and uvicorn is at its quickest (uvloop and httptools).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import clients, wire_client
from benchmarks.duel import TIMES, duel
from benchmarks.rig import contest, fast_uvicorn

COUNT = 640
WIDTH = 16
MANY, CONNECTIONS = 6400, 64  # for what is quick


@pytest.fixture(scope="module")
def quick() -> Iterator[dict[str, str]]:
    """The URLs of a server each, so that no way goes through what another one needs."""
    with fast_uvicorn("short_way") as short_way, fast_uvicorn("raw") as raw:
        yield {"events": f"{short_way}/events/", "plain": f"{short_way}/plain/", "raw": f"{raw}/"}


@pytest.mark.parametrize(
    ("path", "what", "goal"),
    [
        ("through-django", "the adrf view", "at least 0.6 (rate)"),
        ("events", "the short way", "for comparison"),
    ],
)
def test_a_way_in_beside_a_plain_view(
    benchmark: Any, loop: asyncio.AbstractEventLoop, receiver: str, path: str, what: str, goal: str
) -> None:
    messages = clients.messages(2 * TIMES * COUNT)
    http = loop.run_until_complete(clients.opened())

    async def ask(at: str) -> None:
        url = f"{receiver}/{at}/"
        await clients.at_a_time(WIDTH, COUNT, lambda: clients.post(http, url, *next(messages)))

    duel(
        benchmark,
        clients.runner(loop, lambda: ask(path)),
        clients.runner(loop, lambda: ask("plain")),
        what=f"{what} : a plain async Django view, 16 at a time",
        goal=goal,
        is_rate=True,
    )
    loop.run_until_complete(http.close())


@pytest.mark.parametrize(
    ("other", "name", "count", "goal"),
    [
        ("raw", "a bare ASGI callable", MANY, "at least 0.7 (rate)"),
        ("plain", "a plain async Django view", COUNT, "at least 15 (rate)"),
    ],
)
def test_the_short_way_beside(
    benchmark: Any,
    loop: asyncio.AbstractEventLoop,
    quick: dict[str, str],
    other: str,
    name: str,
    count: int,
    goal: str,
) -> None:
    crowds = {
        way: loop.run_until_complete(wire_client.Crowd.connect(quick[way], CONNECTIONS))
        for way in ("events", other)
    }

    def seconds_each(way: str, of: int) -> float:
        # Made before the clock starts, with an id each: one that is known is not handled again.
        requests = [wire_client.request(quick[way], *clients.message(keys=())) for _ in range(of)]
        return loop.run_until_complete(crowds[way].post(iter(requests))) / of

    contest(
        benchmark,
        lambda: seconds_each("events", MANY),
        lambda: seconds_each(other, count),
        what=f"the short way : {name}, {CONNECTIONS} at a time",
        goal=goal,
        is_rate=True,
    )
    for crowd in crowds.values():
        crowd.close()
    loop.run_until_complete(asyncio.sleep(0.01))  # they close in the loop's next turn
