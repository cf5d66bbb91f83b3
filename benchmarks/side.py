"""One side of a duel in a process of its own: a name of a function and its arguments in, its result out.

Each line of stdin is a JSON list, and so is each line of stdout. What is a side's alone stands in its
environment (`rig.py`): the database, the receiver's URL, RabbitMQ's port.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import django
from django.conf import settings

from benchmarks.clients import PAYLOAD
from tests import databases

PEERS = {"outbox-pattern": "django_outbox_pattern", "jaiminho": "jaiminho"}
RECEIVER = os.environ["BENCH_RECEIVER"]
QUEUE = "aevents-benchmarks"

settings.configure(
    SECRET_KEY="benchmarks",
    INSTALLED_APPS=[
        "aevents",
        "benchmarks.shop",
        *(app for app in PEERS.values() if importlib.util.find_spec(app) is not None),
    ],
    DATABASES={"default": databases.from_environment()},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
    AEVENTS={
        "SERVICE": "shop",
        "SERVICES": {"receiver": f"{RECEIVER}/events/"},
        "SUBSCRIPTIONS": {"order-placed": ["receiver"], "user-created": ["receiver"]},
        "OUTBOX": True,
        **json.loads(os.environ.get("BENCH_AEVENTS", "{}")),
    },
    DJANGO_OUTBOX_PATTERN={
        "DEFAULT_STOMP_HOST_AND_PORTS": [("127.0.0.1", int(os.environ.get("BENCH_STOMP_PORT", "0")))],
    },
    JAIMINHO_CONFIG={"PUBLISH_STRATEGY": "keep-order"},
)
django.setup()

from django.apps import apps  # noqa: E402 - Django first
from django.core.management import call_command  # noqa: E402
from django.db import connection, transaction  # noqa: E402

from aevents import emit, emit_many, flush, outbox, store  # noqa: E402
from aevents.composer import make_event  # noqa: E402
from aevents.courier import courier  # noqa: E402
from aevents.keeper import keeper  # noqa: E402
from aevents.relay import relay  # noqa: E402
from aevents.store import Entry, Owed  # noqa: E402
from aevents.tables import OUT  # noqa: E402
from benchmarks.shop.models import Order, OutboxRow  # noqa: E402

if apps.is_installed("jaiminho"):
    import requests
    from jaiminho.relayer import EventRelayer
    from jaiminho.send import save_to_outbox

    _session = requests.Session()

    def post(payload: dict[str, Any]) -> None:
        """What jaiminho's relay calls for each row."""
        _session.post(f"{RECEIVER}/plain/", json={"payload": payload}, timeout=5).raise_for_status()

    save_post = save_to_outbox(post)


if apps.is_installed("django_outbox_pattern"):
    from django_outbox_pattern.factories import factory_producer
    from django_outbox_pattern.models import Published


# The transaction


def add_nothing() -> None:
    """The business row alone."""


def add_event() -> None:
    assert emit("order-placed", PAYLOAD).results


def select() -> None:
    """What one more statement costs at the least."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchone()


def add_orm_row() -> None:
    OutboxRow.objects.create(type="order-placed", payload=PAYLOAD)


def add_published() -> None:
    Published.objects.create(destination=f"/queue/{QUEUE}", body=PAYLOAD)


def add_jaiminho_event() -> None:
    save_post(PAYLOAD)


ADDED: dict[str, Callable[[], None]] = {
    "nothing": add_nothing,
    "aevents": add_event,
    "select": select,
    "orm": add_orm_row,
    "outbox-pattern": add_published,
    "jaiminho": add_jaiminho_event,
}


def transact(added: str, count: int, pause_s: float = 0.0) -> float:
    """Commit so many transactions, one after another; return the seconds that one took."""
    add = ADDED[added]
    took_s = 0.0
    for number in range(count):
        began = time.perf_counter()
        with transaction.atomic():
            Order.objects.create(customer=number, total="9.99", note="x" * 40)
            add()
        took_s += time.perf_counter() - began
        if pause_s:
            time.sleep(pause_s)
    return took_s / count


def produce(threads: int, transactions: int, count: int, by_one: bool) -> float:
    """Commit in so many threads so many transactions of so many events; return when it began."""
    ready = threading.Barrier(threads + 1)

    def work() -> None:
        connection.ensure_connection()
        ready.wait()
        for _ in range(transactions):
            with transaction.atomic():
                if by_one:
                    emissions = [emit("user-created", PAYLOAD) for _ in range(count)]
                else:
                    emissions = emit_many([("user-created", PAYLOAD)] * count)
                assert all(emission.results for emission in emissions)
        connection.close()

    with ThreadPoolExecutor(threads) as pool:
        working = [pool.submit(work) for _ in range(threads)]
        ready.wait(30)
        began = time.monotonic()  # one clock for all processes
        for each in working:
            each.result()
    return began


def when_idle(timeout_s: float = 60.0) -> float:
    """Return when no event was left in the tables."""
    ends = time.monotonic() + timeout_s
    while _waits("aevents_storedevent"):
        assert time.monotonic() < ends, "events are owed still"
        time.sleep(0.01)
    return time.monotonic()


def deliver_nothing() -> None:
    """From now on leave each event where it is stored."""
    outbox._hand_over = lambda parcels: None
    relay.stop()


def settle() -> None:
    """Wait until nothing is under way."""
    assert flush(60.0)


# The relay


def fill(way: str, count: int) -> None:
    """Let so many rows wait."""
    with transaction.atomic():
        if way == "aevents":
            store.add([_owed() for _ in range(count)])
        for _ in range(count if way != "aevents" else 0):
            ADDED[way]()


def _owed() -> Entry:
    return Entry(OUT, make_event("order-placed", PAYLOAD, None), (Owed("receiver"),))


def relay_aevents() -> None:
    """As `manage.py aevents worker` does, until no row waits."""
    relay.is_worker, relay.is_stopped = True, False
    keeper.begin(at_once=True)
    if not keeper.is_running:
        raise RuntimeError("the keeper does not run")
    # The database is asked only where the process has nothing in hand: its relay is what it works for.
    while courier.owed or keeper.owed or _waits("aevents_delivery"):
        time.sleep(0.01)
    relay.stop()


def relay_outbox_pattern() -> None:
    """One pass of `manage.py publish`, without the pause of a second that follows each."""
    producer = factory_producer()
    producer._waiting = lambda: None
    producer.publish_message_from_database()
    assert not _waits("published", "status = 1")


def relay_jaiminho() -> None:
    """One pass of `manage.py events_relay`."""
    EventRelayer().relay()
    assert not _waits("jaiminho_event", "sent_at IS NULL")


RELAYS = {
    "aevents": relay_aevents,
    "outbox-pattern": relay_outbox_pattern,
    "jaiminho": relay_jaiminho,
}


def relay_all(way: str) -> float:
    """Relay all that waits; return the seconds it took."""
    began = time.perf_counter()
    RELAYS[way]()
    return time.perf_counter() - began


def _waits(table: str, where: str = "true") -> bool:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT EXISTS (SELECT 1 FROM {table} WHERE {where})")  # noqa: S608
        return bool(cursor.fetchone()[0])


# The tables


def migrate() -> list[str]:
    """Make the tables; return which ways there are."""
    call_command("migrate", run_syncdb=True, verbosity=0, interactive=False)
    return [way for way in ADDED if way not in PEERS or apps.is_installed(PEERS[way])]


def empty() -> None:
    """Remove all rows."""
    tables = [model._meta.db_table for model in apps.get_models()]
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {', '.join(tables)}")


def analyze() -> None:
    """Let the database know how many rows there are."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def orders() -> int:
    """Return how many business rows there are."""
    return Order.objects.count()


def empty_when_idle() -> None:
    """Remove all rows when nothing is owed any more: what still was would come into the next round."""
    while _waits("aevents_delivery") or _waits("aevents_storedevent"):
        time.sleep(0.01)
    empty()


def end() -> None:
    """Leave no thread behind."""
    relay.stop()
    courier.end()


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps([globals()[name](*arguments)]), file=answers, flush=True)
