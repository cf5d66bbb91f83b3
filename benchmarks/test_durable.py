"""How many events a second are durable on both sides: stored by the emitter, and stored by the receiver?

16 threads commit transactions with ten events each, by one `emit_many` or ten times `emit`, or with one; the
process that sends them is the same, as `OUTBOX` has it. The receiver stores what arrives in its inbox, and a
sync handler does nothing. The clock runs from the first `emit` until neither side owes anything. Each side
has a database of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.duel import figure
from benchmarks.rig import Side, serving
from tests import databases

PRODUCERS = 16
ROUNDS = 7


@pytest.mark.parametrize(
    ("kind", "by", "at_once", "count", "goal"),
    [
        ("postgresql", "emit_many", 10, 4800, 5000),
        ("postgresql", "emit", 10, 3200, None),
        ("postgresql", "emit", 1, 1600, None),
        ("sqlite", "emit_many", 10, 3200, 2000),
        ("sqlite", "emit", 10, 1600, None),
        ("sqlite", "emit", 1, 800, None),
    ],
)
def test_durable_on_both_sides(
    benchmark: Any, tmp_path: Path, kind: str, by: str, at_once: int, count: int, goal: int | None
) -> None:
    with _two_services(kind, tmp_path) as (emitter, receiver):

        def once() -> float:
            began = emitter.call("produce", PRODUCERS, count // PRODUCERS // at_once, at_once, by == "emit")
            ended: float = max(emitter.call("when_idle"), receiver.call("when_idle"))
            return count / (ended - began)

        figure(
            benchmark,
            once,
            what=f"durable on both sides, {kind}, {at_once} a transaction by {by}",
            goal=goal,
            rounds=ROUNDS,
        )


@contextlib.contextmanager
def _two_services(kind: str, folder: Path) -> Iterator[tuple[Side, Side]]:
    """An emitting side, and one beside the receiver that sees its tables."""
    with contextlib.ExitStack() as stack:
        variables = []
        for label in ("emitting", "receiving"):
            try:
                url = stack.enter_context(databases.temporary(kind, label, folder))
            except databases.Unavailable as error:
                pytest.skip(str(error))
            variables.append({"STORE_URL": url})
        for each in variables:
            maker = Side({**each, "BENCH_RECEIVER": ""})
            stack.callback(maker.kill)
            maker.call("migrate")
            maker.end()
        uvicorn = ("uvicorn", "benchmarks.writer:short_way", "--log-level", "warning", "--port", "{port}")
        url = stack.enter_context(serving(*uvicorn, env=variables[1]))
        sides = [Side({**each, "BENCH_RECEIVER": url}) for each in variables]
        for side in sides:
            stack.callback(side.end)
        yield sides[0], sides[1]
