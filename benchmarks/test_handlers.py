"""How many rows a second does a sync handler write behind an inbox, beside the same work in a sync view?

On PostgreSQL. The view runs under gunicorn's gthread with kept connections, 64 clients at a time, and answers
when the row is committed; aevents' receiver stores each event first, and the clock stops when the last row is
there. Both sides of each round write the same number of rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from aevents import aemit
from benchmarks import clients
from benchmarks.rig import Rig, contest, serving

WIDTH, COUNT = 64, 1600


@pytest.mark.parametrize(
    ("event_type", "goal"), [("row-by-row", "at least 1.5 (rate)"), ("many-at-once", "at least 5 (rate)")]
)
def test_a_handler_beside_a_view(
    benchmark: Any,
    loop: asyncio.AbstractEventLoop,
    rig: Rig,
    routed: Callable[..., None],
    event_type: str,
    goal: str,
) -> None:
    gthread = ("gunicorn", "benchmarks.writer:wsgi", "-k", "gthread", "--threads", "8", "--keep-alive", "30")
    view = rig.enter(serving(*gthread, "-b", "127.0.0.1:{port}", env=rig.variables))
    uvicorn = ("uvicorn", "benchmarks.writer:short_way", "--log-level", "warning", "--port", "{port}")
    receiver = rig.enter(serving(*uvicorn, env=rig.variables))
    routed(f"{receiver}/events/", event_type=event_type)
    side = rig.side("nothing")
    http = loop.run_until_complete(clients.opened())

    async def emit() -> None:
        assert (await aemit(event_type, clients.PAYLOAD)).delivered

    async def post() -> None:
        await clients.post(http, f"{view}/write/", *clients.message())

    def seconds(once: Callable[[], Any]) -> float:
        began = time.perf_counter()
        loop.run_until_complete(clients.at_a_time(WIDTH, COUNT, once))
        while side.call("orders") < COUNT:
            time.sleep(0.002)
        return time.perf_counter() - began

    contest(
        benchmark,
        lambda: seconds(emit),
        lambda: seconds(post),
        what=f"a sync handler, {event_type} : a sync view, rows/s",
        goal=goal,
        between=lambda: side.call("empty_when_idle"),
        is_rate=True,
    )
    loop.run_until_complete(http.close())
