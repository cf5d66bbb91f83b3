"""Two ways of doing the same, timed in turn within one run; what counts is their ratio.

Machines drift: every round times the other way right before ours, and the figure is the median of
the rounds' ratios. pytest-benchmark keeps our times and the report; the ratio stands in its
`extra_info`, and is written to the terminal at the end (see conftest.py).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

ROUNDS = 9
TIMES = ROUNDS + 1  # each way is gone, the first time to warm up


def duel(
    benchmark: Any,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    what: str,
    goal: str,
    rounds: int = ROUNDS,
    is_rate: bool = False,
) -> float:
    """Time both in turn; return the median of ours : theirs, as times or (`is_rate`) as rates."""
    ours()
    theirs()  # warm: connections, imports, caches
    their_times: list[float] = []

    def before_each_round() -> None:
        began = time.perf_counter()
        theirs()
        their_times.append(time.perf_counter() - began)

    benchmark.pedantic(ours, setup=before_each_round, rounds=rounds, iterations=1)
    our_times = list(benchmark.stats.stats.data)
    ratios = [
        other / own if is_rate else own / other for own, other in zip(our_times, their_times, strict=True)
    ]
    ratio = statistics.median(ratios)
    benchmark.extra_info.update(
        what=what,
        goal=goal,
        ratio=round(ratio, 3),
        spread=[round(min(ratios), 3), round(max(ratios), 3)],
        ours_ms=round(statistics.median(our_times) * 1e3, 3),
        theirs_ms=round(statistics.median(their_times) * 1e3, 3),
    )
    return ratio


def figure(
    benchmark: Any,
    once: Callable[[], float],
    *,
    what: str,
    unit: str = "events/s",
    goal: float | None = None,
    is_most: bool = False,
    rounds: int = ROUNDS,
    between: Callable[[], None] = lambda: None,
) -> float:
    """Let `once` say a figure each round, after a round to warm up; return the median.

    For what stands beside nothing else. `goal`: at least so much, or (`is_most`) at most.
    """
    figures: list[float] = []
    once()
    benchmark.pedantic(lambda: figures.append(once()), setup=between, rounds=rounds, iterations=1)
    median = statistics.median(figures)
    benchmark.extra_info.update(
        what=what,
        figure=round(median, 3),
        spread=[round(min(figures), 3), round(max(figures), 3)],
        unit=unit,
        goal=goal,
        is_most=is_most,
    )
    return median
