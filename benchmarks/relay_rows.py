"""How many waiting rows a second the relay brings to a Django view: `python -m benchmarks.relay_rows [rows]`.

Three processes: PostgreSQL (`AEVENTS_TEST_POSTGRESQL`), a worker that relays, and uvicorn with the
`EventViewSet` and an async handler that does nothing. Prints one line a round. With `PROFILE=worker` or
`PROFILE=receiver` that process writes what it spent its time on to `/tmp`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime
from typing import Any

ROUNDS = 3


def _configure(**aevents: Any) -> None:
    from django.conf import settings

    from tests import databases

    store = {"DATABASES": {"default": databases.from_environment()}} if "STORE" not in aevents else {}
    settings.configure(
        SECRET_KEY="bench",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=["aevents"],
        MIDDLEWARE=[],
        USE_TZ=True,
        AEVENTS={"UNSIGNED": "accept", **aevents},
        **store,
    )
    import django

    django.setup()


def receive(port: int) -> None:
    """Serve until killed."""
    _configure(SERVICE="payments", STORE=None)
    import uvicorn
    from django.core.asgi import get_asgi_application
    from django.urls import include, path

    from aevents import subscribe_to

    async def handler(payload: Any) -> None:
        return

    subscribe_to("order-placed", handler, name="noop")
    globals()["urlpatterns"] = [path("events/", include("aevents.urls"))]
    uvicorn.run(get_asgi_application(), port=port, log_level="warning", access_log=False)


def work(port: int, rows: int) -> None:
    """Store the rows, then relay them all; print the figures."""
    _configure(SERVICE="orders", SERVICES={"payments": f"http://127.0.0.1:{port}/events/"}, RELAY=False)
    from django.core.management import call_command

    from aevents import store, tables
    from aevents.courier import courier
    from aevents.event import Event, new_id
    from aevents.keeper import keeper
    from aevents.relay import relay
    from aevents.store import Entry, Owed

    call_command("migrate", verbosity=0)
    data = json.dumps({"text": "x" * 180, "n": 1}).encode()
    for _ in range(ROUNDS):
        for _ in range(0, rows, 500):
            store.add(
                [
                    Entry(
                        tables.OUT,
                        Event(new_id(), "order-placed", data, "orders", datetime.now(UTC)),
                        (Owed("payments"),),
                    )
                    for _ in range(500)
                ]
            )
        with tables.connection().cursor() as cursor:
            cursor.execute("ANALYZE")
        began, used = time.monotonic(), time.process_time()
        relay.is_worker, relay.is_stopped = True, False
        keeper.begin(at_once=True)
        # The database is asked only where the process has nothing in hand: its relay is what it works for.
        while courier.owed or keeper.owed or tables.deliveries().exists():
            time.sleep(0.01)
        took, used = time.monotonic() - began, time.process_time() - used
        relay.is_worker, relay.is_stopped = False, True
        assert not tables.events().exists()
        print(f"{rows / took:8.0f} rows/s   {used / took:4.0%} of a core in the worker", flush=True)
    courier.close(1.0)
    keeper.end(1.0)


def main() -> None:
    """Make the database, start both, and clean up."""
    from tempfile import gettempdir

    from tests import databases, servers

    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    url = databases._create("postgresql")
    with servers._reserved_port() as port:
        env = {**os.environ, "STORE_URL": url, "PYTHONPATH": str(servers.ROOT)}

        def start(role: str, *more: str) -> subprocess.Popen[bytes]:
            profile = []
            if os.environ.get("PROFILE") == role:
                profile = ["-m", "cProfile", "-o", f"{gettempdir()}/{role}.prof"]
            command = [sys.executable, *profile, "-m", "benchmarks.relay_rows"]
            return subprocess.Popen([*command, role, str(port), *more], env=env)

        receiver = start("receiver")
        try:
            _wait_for(f"http://127.0.0.1:{port}/events/")
            start("worker", str(rows)).wait()
        finally:
            receiver.terminate()
            receiver.wait()
            server, _, name = url.rpartition("/")
            databases._run(server, databases.DROP["postgresql"].format(name))


def _wait_for(url: str) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(url, timeout=1)  # noqa: S310 - it is ours
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the receiver did not start")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["receiver", port]:
            receive(int(port))
        case ["worker", port, rows]:
            work(int(port), int(rows))
        case _:
            main()
