"""Where each microsecond goes, on both sides, by stage: `python -m benchmarks.profile_stages [seconds]`.

64 emitters on uvloop, each awaiting its own event, into the short way in; first without a store, then with
an inbox on PostgreSQL (`AEVENTS_TEST_POSTGRESQL`, or the one on loopback) and a sync handler. Prints two
Markdown tables in CPU µs an event: of each stage (see `stages.py`), what it takes here and what its floor
is (see `floors.py`). What all of it takes is measured without a look at the stacks, the shares with one.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import clients, stages
from benchmarks.rig import Side, free_port
from benchmarks.sampler import ELSE, Sampler

WIDTH = 64
WARM_S, PLAIN_S = 1.0, 3.0
_ME = "benchmarks.profile_stages"
_sampler: Sampler | None = None
_began = (0.0, 0.0, 0)


# In either of the two processes


def begin(side: str, is_sampled: bool) -> None:
    """Begin to count, and where asked for to look at the stacks."""
    global _sampler, _began
    _sampler = Sampler(stages.OF[side]) if is_sampled else None
    if _sampler is not None:
        _sampler.begin()
    _began = _used()


def end() -> dict[str, Any]:
    """Return the CPU seconds since then, and how they spread."""
    used_s, in_kernel_s, waits = (now - then for now, then in zip(_used(), _began, strict=True))
    if _sampler is None:
        return {"used_s": used_s, "in_kernel_s": in_kernel_s, "waits": waits}
    _sampler.end()
    used_s -= _sampler.own_s
    return {"used_s": used_s, "by_stage": _sampler.by_stage, "by_function": _sampler.by_function}


def _used() -> tuple[float, float, int]:
    """CPU seconds, those of them in the kernel, and how often a thread has given its core away."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_stime, usage.ru_nvcsw


def _obey(answers: Any) -> None:
    for line in sys.stdin:  # as `side.py` does
        name, *arguments = json.loads(line)
        print(json.dumps([globals()[name](*arguments)]), file=answers, flush=True)


# The emitting process


def _be_emitter(url: str) -> None:
    global _loop
    import django
    from django.conf import settings

    settings.configure(
        USE_TZ=True,
        INSTALLED_APPS=["aevents"],
        AEVENTS={
            "SERVICE": "benchmarks",
            "STORE": None,
            "SECRETS": [clients.SECRET],
            "SERVICES": {"receiver": url},
            "SUBSCRIPTIONS": {"user-created": ["receiver"]},
        },
    )
    django.setup()
    from aevents.loops import new_quickest_loop

    _loop = new_quickest_loop()


def emit_for(seconds: float) -> int:
    """Emit for so long, 64 at a time; return how many events."""
    from aevents import aemit

    ends, count = time.monotonic() + seconds, 0

    async def emitter() -> None:
        nonlocal count
        while time.monotonic() < ends:
            assert (await aemit("user-created", clients.PAYLOAD)).delivered
            count += 1

    async def main() -> None:
        await asyncio.gather(*(emitter() for _ in range(WIDTH)))

    _loop.run_until_complete(main())
    return count


def floors(together: int, store_url: str) -> dict[str, float]:
    """Return the floors where so many events travel together."""
    from benchmarks.floors import Floors

    found = Floors(together)
    names = ("wake", "compose", "pack", "cross", "write", "sign", "send", "serve", "read", "handle")
    least = {name: getattr(found, name)() for name in names}
    if store_url:
        import psycopg

        with closing(psycopg.connect(store_url, autocommit=True)) as connection:
            least["insert"] = found.insert(connection)
    return least


# The receiving process


def _be_receiver(module: str, port: str) -> None:
    import importlib

    import uvicorn

    application = importlib.import_module(module).short_way

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        _requests[0] += scope["type"] == "http"
        await application(scope, receive, send)

    answers, sys.stdout = sys.stdout, sys.stderr
    threading.Thread(target=_obey, args=(answers,), name="unseen", daemon=True).start()
    quick: Any = {"loop": "uvloop", "http": "httptools", "lifespan": "off", "access_log": False}
    uvicorn.run(counted, port=int(port), log_level="warning", timeout_keep_alive=60, **quick)


_requests = [0]


def requests() -> int:
    """Return how many came so far."""
    return _requests[0]


def settle() -> None:
    """Wait until nothing is owed any more."""
    from aevents import tables

    while tables.why_not() is None and tables.events().exists():
        time.sleep(0.05)


def postgresql_s() -> float:
    """Return the CPU seconds that PostgreSQL's processes for this database have used."""
    from aevents import tables

    if tables.why_not() is not None:
        return 0.0
    with tables.connection().cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
        pids = [pid for (pid,) in cursor.fetchall()]
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# Both


def measure(module: str, seconds: float, env: dict[str, str]) -> dict[str, Any]:
    """Run both processes; return µs an event by side and stage, and all that the tables say beside."""
    with ExitStack() as stack:
        port = free_port()
        env = {**env, "BENCH_SECRET": clients.SECRET}
        receiver = Side(env, _ME, "receive", module, str(port))
        stack.callback(receiver.kill)
        receiver.wait_for(port)
        emitter = Side(env, _ME, "emit", f"http://127.0.0.1:{port}/events/")
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
    of_emitter = emitter.call("end")
    receiver.call("settle")
    of_receiver = receiver.call("end")
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
    match sys.argv[1:]:
        case ["emit", url]:
            _be_emitter(url)
            answers, sys.stdout = sys.stdout, sys.stderr
            _obey(answers)
        case ["receive", module, port]:
            _be_receiver(module, port)
        case _:
            main()
