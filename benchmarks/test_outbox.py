"""What does a transaction of one ORM row cost with an outbox event beside the same row alone?

On PostgreSQL, each way in a process of its own. "As users have it": the event is on its way while the next
transactions run. Beside it what others cost: a statement that does nothing, an ORM row,
django-outbox-pattern, django-jaiminho.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.rig import Rig, contest

ROUNDS = 25  # many short ones: a commit waits for the disk, which others use too
COUNT = 60
PACED_COUNT, PAUSE_S = 20, 0.01


@pytest.mark.parametrize(
    ("added", "name"),
    [
        ("select", "SELECT 1"),
        ("orm", "an ORM row"),
        ("outbox-pattern", "django-outbox-pattern"),
        ("jaiminho", "django-jaiminho"),
    ],
)
def test_a_row_of_others(benchmark: Any, rig: Rig, added: str, name: str) -> None:
    _race(benchmark, rig, added, f"row and {name} : row alone, stored only", goal="for comparison")


def test_emit_stored_only(benchmark: Any, rig: Rig) -> None:
    what = "row and emit : row alone, stored only"
    _race(benchmark, rig, "aevents", what, goal="at most 1.3 (time)", delivers=False)


@pytest.mark.parametrize(
    ("count", "pause_s", "how"),
    [(COUNT, 0.0, "no pause"), (PACED_COUNT, PAUSE_S, "10 ms between")],
)
def test_emit_as_users_have_it(benchmark: Any, rig: Rig, count: int, pause_s: float, how: str) -> None:
    what = f"row and emit : row alone, delivered meanwhile, {how}"
    _race(benchmark, rig, "aevents", what, goal="at most 1.3 (time)", count=count, pause_s=pause_s)


def _race(
    benchmark: Any,
    rig: Rig,
    added: str,
    what: str,
    *,
    goal: str,
    count: int = COUNT,
    pause_s: float = 0.0,
    delivers: bool = True,
) -> None:
    rig.need(added)
    ours, alone = rig.side(added), rig.side("nothing")
    if not delivers:
        ours.call("deliver_nothing")

    def between() -> None:
        ours.call("settle")  # what is under way would be the other side's burden
        alone.call("empty")

    contest(
        benchmark,
        lambda: ours.call("transact", added, count, pause_s),
        lambda: alone.call("transact", "nothing", count, pause_s),
        what=what,
        goal=goal,
        between=between,
        rounds=ROUNDS,
    )
