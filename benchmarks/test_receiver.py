"""What do the two ways in cost beside a plain async Django view with the same work?"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from benchmarks import clients
from benchmarks.duel import TIMES, duel

COUNT = 640
WIDTH = 16


@pytest.mark.parametrize(
    ("path", "what", "goal"),
    [
        ("through-django", "the adrf view", "at least 0.6 (rate)"),
        ("events", "the short way", "for comparison"),
    ],
)
def test_a_way_in_beside_a_plain_view(benchmark: Any, receiver: str, path: str, what: str, goal: str) -> None:
    loop = asyncio.new_event_loop()
    messages = clients.messages(2 * TIMES * COUNT)

    async def opened() -> Any:
        return clients.session()

    http = loop.run_until_complete(opened())

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
    loop.close()
