"""How many waiting rows a second does the relay bring to a Django view, beside the relays of others?

On PostgreSQL, each relay alone in a process of its own. aevents POSTs to its own view under uvicorn, where
each event has a handler; django-jaiminho to a plain async view beside it, which calls the same handler;
django-outbox-pattern hands over to RabbitMQ by STOMP, where its work ends.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.rig import Rig, contest

ROWS = {"aevents": 5000, "outbox-pattern": 600, "jaiminho": 100}


@pytest.mark.parametrize(
    ("way", "name", "goal"),
    [
        ("outbox-pattern", "django-outbox-pattern", "at least 30 (rate)"),
        ("jaiminho", "django-jaiminho", "at least 100 (rate)"),
    ],
)
def test_relay_beside(benchmark: Any, rig: Rig, way: str, name: str, goal: str) -> None:
    rig.need(way)
    ours, theirs = rig.side("aevents"), rig.side(way, stomp_port=rig.stomp_port(way))
    contest(
        benchmark,
        lambda: _seconds_a_row(ours, "aevents"),
        lambda: _seconds_a_row(theirs, way),
        what=f"relay of aevents : {name}, rows/s",
        goal=goal,
        between=lambda: theirs.call("empty"),
        is_rate=True,
    )


def _seconds_a_row(side: Any, way: str) -> float:
    side.call("fill", way, ROWS[way])
    took_s: float = side.call("relay_all", way)
    return took_s / ROWS[way]
