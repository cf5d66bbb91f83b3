"""Does an event cost the same after a million, what do both sides hold when one is too slow, and what does a
full outbox cost an `emit`?

The million goes through the short way, 64 emitters awaiting their own, in ten parts; before each a thousand
go between two processes that have just begun, so that both meet the same moment of the machine. What is too
slow is a handler: ten times as many events are handed over as it can take, and nobody waits for one. Rows
wait in the outbox of one of two databases on PostgreSQL; no relay runs.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks import clients
from benchmarks.duel import figure
from benchmarks.rig import Side, contest, free_port
from tests import databases

PARTS, MILLION, THOUSAND, THOUSANDS = 10, 1_000_000, 1000, 5
RATE, SECONDS, WARM_S = 10_000, 4.0, 2.0  # ten times what `handle_slowly` takes
WAITING, AT_ONCE, COUNT, ROUNDS = 100_000, 5000, 60, 25


def test_a_million_beside_a_thousand(benchmark: Any) -> None:
    thousands: list[float] = []

    def begin_anew() -> None:
        with _both() as (emitter, _):
            emitter.call("emit_many", THOUSAND)  # warm: connections, imports, caches
            thousands.append(statistics.median(emitter.call("emit_many", THOUSAND) for _ in range(THOUSANDS)))

    parts: list[float] = []
    with _both() as (old, _):
        old.call("emit_many", THOUSAND)
        benchmark.pedantic(
            lambda: parts.append(old.call("emit_many", MILLION // PARTS)),
            setup=begin_anew,
            rounds=PARTS,
            iterations=1,
        )
    ratios = [part / thousand for part, thousand in zip(parts, thousands, strict=True)]
    benchmark.extra_info.update(
        what="an event of a million : one of a thousand",
        goal="at most 1.1 (time)",
        ratio=round(statistics.median(ratios), 3),
        spread=[round(min(ratios), 3), round(max(ratios), 3)],
        ours_ms=round(statistics.median(parts) * 1e3, 4),
        theirs_ms=round(statistics.median(thousands) * 1e3, 4),
        parts_us=[round(part * 1e6, 1) for part in parts],
    )


def test_memory_beside_a_slow_receiver(benchmark: Any) -> None:
    with _both() as sides:
        sides[0].call("emit_for", WARM_S)
        before = [side.call("rss_mib") for side in sides]
        grown = [0.0, 0.0]
        emitted = [0]

        def once() -> float:
            emitted.append(sides[0].call("emit_unawaited", RATE, SECONDS))
            assert sides[0].call("owed"), "nothing waits: the receiver is not too slow"
            for place, side in enumerate(sides):
                grown[place] = max(grown[place], side.call("rss_mib") - before[place])
            return max(grown)

        what = "memory of the side that grows most, its receiver ten times too slow"
        figure(benchmark, once, what=what, unit="MiB", goal=50, is_most=True, rounds=7)
        taken = sides[1].call("handled_slowly")
        benchmark.extra_info.update(
            emitter_mib=round(grown[0], 1),
            receiver_mib=round(grown[1], 1),
            times_too_slow=round(sum(emitted) / taken, 1),
        )


def test_emit_beside_a_full_outbox(benchmark: Any, tmp_path: Path) -> None:
    with ExitStack() as stack:
        sides = []
        for label in ("full", "empty"):
            try:
                url = stack.enter_context(databases.temporary("postgresql", label, tmp_path))
            except databases.Unavailable as error:
                pytest.skip(str(error))
            side = Side({"STORE_URL": url, "BENCH_RECEIVER": "http://127.0.0.1:9"})
            stack.callback(side.end)
            side.call("migrate")
            side.call("deliver_nothing")
            sides.append(side)
        full, empty = sides
        for _ in range(0, WAITING, AT_ONCE):
            full.call("fill", "aevents", AT_ONCE)
        for side in sides:
            side.call("analyze")
        contest(
            benchmark,
            lambda: full.call("transact", "aevents", COUNT),
            lambda: empty.call("transact", "aevents", COUNT),
            what=f"row and emit, {WAITING:,} rows waiting : none waiting",
            goal="at most 1.1 (time)",
            rounds=ROUNDS,
        )


@contextlib.contextmanager
def _both() -> Iterator[tuple[Side, Side]]:
    """An emitter and a receiver that have just begun, without a store."""
    with ExitStack() as stack:
        port = free_port()
        env = {"BENCH_SECRET": clients.SECRET, "BENCH_RECEIVER": f"http://127.0.0.1:{port}/events/"}
        receiver = Side(env, "benchmarks.served", "benchmarks.receiver", str(port))
        stack.callback(receiver.kill)
        receiver.wait_for(port)
        emitter = Side(env, "benchmarks.emitting")
        stack.callback(emitter.kill)
        yield emitter, receiver
