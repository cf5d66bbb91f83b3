"""What does the sync `emit` cost beside a kept `requests.Session`, with one and three subscribers?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import requests

from aevents import emit
from benchmarks import clients
from benchmarks.duel import TIMES, duel

COUNT = 200


@pytest.mark.parametrize(("subscribers", "goal"), [(1, "at most 0.45 (time)"), (3, "at most 0.25 (time)")])
def test_emit_beside_requests(
    benchmark: Any, sinks: list[str], routed: Callable[..., None], subscribers: int, goal: str
) -> None:
    urls = sinks[:subscribers]
    routed(*urls)
    messages = clients.messages(TIMES * COUNT)

    def ours() -> None:
        for _ in range(COUNT):
            assert emit("user-created", clients.PAYLOAD).delivered

    with requests.Session() as session:

        def theirs() -> None:
            for _ in range(COUNT):
                headers, body = next(messages)
                for url in urls:
                    assert session.post(url, data=body, headers=headers).ok

        duel(benchmark, ours, theirs, what=f"emit : requests.Session, {subscribers} subscriber(s)", goal=goal)
