"""What does it gain that what waits for a destination travels together, when every emitter awaits its own?

16 and 64 emitters, each with one event at a time, beside as many that POST each event singly with aiohttp
into a plain async Django view with the same work; and one event to ten destinations beside `asyncio.gather`
of ten POSTs. All is signed and verified on both sides, the other side's messages are made and signed
beforehand. All loops are uvloop's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from benchmarks import clients
from benchmarks.rig import ROUNDS, contest

SINGLE, TOGETHER = 400, 12_800  # events a round; the quick side needs more of them to be timed well
DESTINATIONS = 10


@pytest.mark.parametrize(
    ("path", "into", "width", "goal"),
    [
        ("through-django", "the adrf view", 16, "at least 8 (rate)"),
        ("through-django", "the adrf view", 64, "at least 25 (rate)"),
        ("events", "the short way", 64, "at least 60 (rate)"),
    ],
)
def test_lanes_beside_single_posts(
    benchmark: Any,
    loop: asyncio.AbstractEventLoop,
    signed_receiver: str,
    routed: Callable[..., None],
    path: str,
    into: str,
    width: int,
    goal: str,
) -> None:
    routed(f"{signed_receiver}/{path}/")
    messages = clients.messages((ROUNDS + 1) * SINGLE)
    http = loop.run_until_complete(clients.opened())

    async def post() -> None:
        await clients.post(http, f"{signed_receiver}/plain/", *next(messages))

    contest(
        benchmark,
        lambda: _seconds_an_event(loop, width, TOGETHER, clients.emit),
        lambda: _seconds_an_event(loop, width, SINGLE, post),
        what=f"aemit into {into} : single POSTs into a plain view, {width} emitters",
        goal=goal,
        is_rate=True,
    )
    loop.run_until_complete(http.close())


def test_fan_out_beside_gather(
    benchmark: Any,
    loop: asyncio.AbstractEventLoop,
    signed_receiver: str,
    routed: Callable[..., None],
) -> None:
    # One process plays all ten, as ten would fight for the cores. Lanes belong to services: there are ten.
    urls = [f"{signed_receiver}/events/"] * DESTINATIONS
    routed(*urls)
    messages = clients.messages((ROUNDS + 1) * SINGLE)
    http = loop.run_until_complete(clients.opened())

    async def post() -> None:
        headers, body = next(messages)
        await asyncio.gather(*(clients.post(http, url, headers, body) for url in urls))

    contest(
        benchmark,
        lambda: _seconds_an_event(loop, 64, TOGETHER // 4, clients.emit),
        lambda: _seconds_an_event(loop, 64, SINGLE, post),
        what=f"aemit to {DESTINATIONS} : gather of {DESTINATIONS} POSTs, 64 emitters, into the short way",
        goal="at least 20 (rate)",
        is_rate=True,
    )
    loop.run_until_complete(http.close())


def _seconds_an_event(
    loop: asyncio.AbstractEventLoop, width: int, count: int, once: Callable[[], Awaitable[Any]]
) -> float:
    began = time.perf_counter()
    loop.run_until_complete(clients.at_a_time(width, count, once))
    return (time.perf_counter() - began) / (count // width * width)
