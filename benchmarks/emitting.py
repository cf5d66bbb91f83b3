"""An emitter without a store in a process of its own, on the quickest loop, which obeys as `side.py` does.

Where it sends to stands in `BENCH_RECEIVER`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing

import django
from django.conf import settings

from benchmarks import clients
from benchmarks.obeying import obey

settings.configure(
    USE_TZ=True,
    INSTALLED_APPS=["aevents"],
    AEVENTS={
        "SERVICE": "benchmarks",
        "STORE": None,
        "SECRETS": [clients.SECRET],
        "SERVICES": {"receiver": os.environ["BENCH_RECEIVER"]},
        "SUBSCRIPTIONS": {"user-created": ["receiver"], "taken-slowly": ["receiver"]},
    },
)
django.setup()

from aevents import aemit, emit  # noqa: E402 - Django first
from aevents.courier import courier  # noqa: E402
from aevents.loops import new_quickest_loop  # noqa: E402

WIDTH = 64
_loop = new_quickest_loop()
logging.getLogger("aevents").addHandler(logging.NullHandler())  # else a line on stderr for each that is lost


def emit_for(seconds: float) -> int:
    """Emit for so long, 64 at a time, each awaiting its own event; return how many."""
    ends = time.monotonic() + seconds
    return _emit_while(lambda count: time.monotonic() < ends)


def emit_many(most: int) -> float:
    """Emit so many events in the same way; return the seconds that one took."""
    began = time.perf_counter()
    count = _emit_while(lambda count: count < most)
    return (time.perf_counter() - began) / count


def _emit_while(may_go_on: Callable[[int], bool]) -> int:
    count = 0

    async def emitter() -> None:
        nonlocal count
        while may_go_on(count):
            assert (await aemit("user-created", clients.PAYLOAD)).delivered
            count += 1

    async def main() -> None:
        await asyncio.gather(*(emitter() for _ in range(WIDTH)))

    _loop.run_until_complete(main())
    return count


def emit_unawaited(rate: int, seconds: float) -> int:
    """Hand over so many events a second and wait for none; return how many it were."""
    tick_s = 0.01

    async def main() -> int:
        began, count = time.monotonic(), 0
        while (elapsed_s := time.monotonic() - began) < seconds:
            while count < elapsed_s * rate:
                emit("taken-slowly", clients.PAYLOAD)  # in a loop it waits for nothing
                count += 1
            await asyncio.sleep(tick_s)
        return count

    return _loop.run_until_complete(main())


def owed() -> int:
    """Return how many deliveries wait or are under way."""
    return courier.owed


def floors(together: int, store_url: str) -> dict[str, float]:
    """Return the floors where so many events travel together."""
    from benchmarks.floors import Floors

    found = Floors(together)
    names = ("wake", "compose", "pack", "cross", "write", "sign", "send", "serve", "read", "handle")
    least = {name: getattr(found, name)() for name in names}
    if store_url:
        import psycopg

        with closing(psycopg.connect(store_url, autocommit=True)) as connection:
            least |= {"insert": found.insert(connection), "savepoint": found.savepoint(connection)}
    return least


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr
    obey(globals(), answers)
