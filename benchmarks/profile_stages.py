"""Where each microsecond goes, on both sides, by stage: `python -m benchmarks.profile_stages [seconds]`.

64 emitters on uvloop, each awaiting its own event, into the short way in; first without a store, then with
an inbox on PostgreSQL (`AEVENTS_TEST_POSTGRESQL`, or the one on loopback) and a sync handler. Prints two
Markdown tables in CPU µs an event: of each stage (see `stages.py`), what it takes here and what its floor
is (see `floors.py`). What all of it takes is measured without a look at the stacks, the shares with one.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import clients, stages
from benchmarks.rig import Side, free_port
from benchmarks.sampler import ELSE

WARM_S, PLAIN_S = 1.0, 3.0


def measure(module: str, seconds: float, env: dict[str, str]) -> dict[str, Any]:
    """Run both processes; return µs an event by side and stage, and all that the tables say beside."""
    with ExitStack() as stack:
        port = free_port()
        env = {**env, "BENCH_SECRET": clients.SECRET}
        receiver = Side(env, "benchmarks.served", module, str(port))
        stack.callback(receiver.kill)
        receiver.wait_for(port)
        env["BENCH_RECEIVER"] = f"http://127.0.0.1:{port}/events/"
        emitter = Side(env, "benchmarks.emitting")
        stack.callback(emitter.kill)
        emitter.call("emit_for", WARM_S)
        plain = _one_run(emitter, receiver, PLAIN_S, is_sampled=False)
        sampled = _one_run(emitter, receiver, seconds, is_sampled=True)
        together = plain["events"] / max(1, plain["requests"])
        least = emitter.call("floors", round(together), env.get("STORE_URL", ""))
    found: dict[str, Any] = {"together": together, "rate": plain["rate"], "floors": least}
    found["PostgreSQL"] = plain["postgresql_s"] / plain["events"] * 1e6
    for side in ("emitter", "receiver"):
        whole_us = plain[side]["used_s"] / plain["events"] * 1e6
        by_stage = sampled[side]["by_stage"]
        scale = whole_us / sum(by_stage.values())
        found[side] = {stage: used_s * scale for stage, used_s in by_stage.items()}
        found[side]["all"] = whole_us
        found[side]["kernel"] = plain[side]["in_kernel_s"] / plain["events"] * 1e6
        found[side]["waits"] = plain[side]["waits"] / max(1, plain["requests"])
        if os.environ.get("FUNCTIONS"):
            _print_functions(side, sampled[side]["by_function"], scale)
            cost_us = sampled[side]["used_s"] / sampled["events"] * 1e6
            print(f"({side}: {whole_us:.1f} µs an event, {cost_us:.1f} when looked at)\n")
    return found


def _one_run(emitter: Side, receiver: Side, seconds: float, *, is_sampled: bool) -> dict[str, Any]:
    receiver.call("settle")
    requests, postgresql_s = receiver.call("requests"), receiver.call("postgresql_s")
    began = time.monotonic()
    receiver.call("begin", "receiver", is_sampled)
    emitter.call("begin", "emitter", is_sampled)
    events = emitter.call("emit_for", seconds)
    of_emitter = emitter.call("end_counting")
    receiver.call("settle")
    of_receiver = receiver.call("end_counting")
    return {
        "events": events,
        "rate": events / (time.monotonic() - began),
        "requests": receiver.call("requests") - requests,
        "postgresql_s": receiver.call("postgresql_s") - postgresql_s,
        "emitter": of_emitter,
        "receiver": of_receiver,
    }


def _print_functions(side: str, by_function: dict[str, float], scale: float) -> None:
    print(f"\n{side}, by function, µs an event:")
    for name, used_s in sorted(by_function.items(), key=lambda pair: -pair[1])[:40]:
        print(f"  {used_s * scale:6.2f}  {name}")


def main() -> None:
    """Make the database, measure, print the tables, clean up."""
    from tests import databases

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 8.0
    plain, stored = measure("benchmarks.receiver", seconds, {}), None
    try:
        with TemporaryDirectory() as folder, databases.temporary("postgresql", "stages", Path(folder)) as url:
            env = {"STORE_URL": url}
            stack = Side({**env, "BENCH_RECEIVER": ""})
            stack.call("migrate")
            stack.end()
            stored = measure("benchmarks.writer", seconds, env)
    except databases.Unavailable as error:
        print(f"without an inbox, as {error}", file=sys.stderr)
    print(stages.table("emitter", plain, stored, ELSE))
    print(stages.table("receiver", plain, stored, ELSE))


if __name__ == "__main__":
    main()
