"""What does `aemit`, which signs, cost beside the same POST by hand: one at a time and 64 at a time?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import clients
from benchmarks.duel import TIMES, duel


@pytest.mark.parametrize(
    ("width", "count", "goal"), [(1, 300, "at most 1.25 (time)"), (64, 3200, "at least 0.75 (rate)")]
)
@pytest.mark.parametrize("into", ["sink", "django"])
def test_aemit_beside_bare_aiohttp(
    benchmark: Any,
    loop: asyncio.AbstractEventLoop,
    sinks: list[str],
    receiver: str,
    routed: Callable[..., None],
    into: str,
    width: int,
    count: int,
    goal: str,
) -> None:
    url = sinks[0] if into == "sink" else f"{receiver}/through-django/"
    count = count if into == "sink" else count // 4
    routed(url)
    messages = clients.messages(TIMES * count)
    http = loop.run_until_complete(clients.opened())

    async def post() -> None:
        await clients.post(http, url, *next(messages))

    duel(
        benchmark,
        clients.runner(loop, lambda: clients.at_a_time(width, count, clients.emit)),
        clients.runner(loop, lambda: clients.at_a_time(width, count, post)),
        what=f"aemit : bare aiohttp, {width} at a time, into {into}",
        goal=goal,
        is_rate=width > 1,
    )
    loop.run_until_complete(http.close())
