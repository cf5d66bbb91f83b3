"""A receiver under uvicorn at its quickest, which obeys as `side.py` does: a module and a port in."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn

from benchmarks.obeying import obey

_requests = [0]


def serve(module: str, port: int) -> None:
    """Serve the module's `short_way` until killed."""
    application = importlib.import_module(module).short_way

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        _requests[0] += scope["type"] == "http"
        await application(scope, receive, send)

    answers, sys.stdout = sys.stdout, sys.stderr
    # The sampler is not to see it.
    threading.Thread(target=obey, args=(globals(), answers), name="unseen", daemon=True).start()
    quick: Any = {"loop": "uvloop", "http": "httptools", "lifespan": "off", "access_log": False}
    uvicorn.run(counted, port=port, log_level="warning", timeout_keep_alive=60, **quick)


def requests() -> int:
    """Return how many came so far."""
    return _requests[0]


def handled_slowly() -> int:
    """Return how many events `receiver.py` has taken slowly."""
    count: int = sys.modules["benchmarks.receiver"].taken_slowly["count"]
    return count


def settle() -> None:
    """Wait until nothing is owed any more."""
    from aevents import tables

    ends = time.monotonic() + 60
    while tables.why_not() is None and tables.events().exists():
        assert time.monotonic() < ends, "events are owed still"
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


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
