"""What does the adrf view cost beside a plain async Django view with the same work?"""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks import clients
from benchmarks.duel import TIMES, duel

COUNT = 640
WIDTH = 16


def test_the_view_beside_a_plain_one(benchmark: Any, receiver: str) -> None:
    loop = asyncio.new_event_loop()
    messages = clients.messages(2 * TIMES * COUNT)

    async def opened() -> Any:
        return clients.session()

    http = loop.run_until_complete(opened())

    async def ask(path: str) -> None:
        url = f"{receiver}/{path}/"
        await clients.at_a_time(WIDTH, COUNT, lambda: clients.post(http, url, *next(messages)))

    duel(
        benchmark,
        clients.runner(loop, lambda: ask("events")),
        clients.runner(loop, lambda: ask("plain")),
        what="the adrf view : a plain async Django view, 16 at a time",
        goal="at least 0.6 (rate)",
        is_rate=True,
    )
    loop.run_until_complete(http.close())
    loop.close()
