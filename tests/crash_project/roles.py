"""What a child of the launcher may be. Each is told what to do, and tells when it is ready."""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import uvicorn
from django.conf import settings
from django.core.management import call_command, execute_from_command_line
from django.db import DatabaseError, connection, connections, transaction

from aevents import emit, emit_many, lane, outbox, subscribe_to, tables, upkeep
from aevents.models import Delivery, Seen, State, StoredEvent
from tests.crash_project import handlers as library
from tests.crash_project.asgi import application
from tests.crash_project.models import Effect, Emitted, Turn

Handlers = Mapping[str, Sequence[str]]  # by event type: names of `handlers.py`
_LOOK_EVERY_S = 0.1


class Teller:
    """Tells the test, in lines that are written whole or not at all, whenever the process is killed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.name = ""

    def __call__(self, **facts: Any) -> None:
        line = json.dumps({"name": self.name, **facts}).encode() + b"\n"
        assert len(line) < 4096
        os.write(self._descriptor, line)


def hasten(lease_s: float) -> None:
    """Let leases be short, and what is kept away from their ends shorter still."""
    tables.LEASE_S = lease_s
    outbox._MARGIN_S = lease_s / 3
    lane._MARGIN_S = lease_s / 10


# The services


def work(tell: Teller, *, handlers: Handlers | None = None, verb: Sequence[str] = ("worker",)) -> int:
    """`manage.py aevents worker`."""
    subscribe(handlers)
    log = logging.getLogger("aevents")
    log.addFilter(_Ready(tell))
    log.setLevel(logging.INFO)
    sys.argv = ["manage.py", "aevents", *verb]
    execute_from_command_line(sys.argv)
    return 0


class _Ready(logging.Filter):
    """Tells that the worker has begun; its log says so first, and nothing else of that level."""

    def __init__(self, tell: Teller) -> None:
        super().__init__()
        self._tell = tell

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.INFO and record.getMessage().endswith("begins"):
            self._tell(ready=True)
        return record.levelno > logging.INFO


def receive(tell: Teller, *, port: int, handlers: Handlers | None = None) -> int:
    """A server of the project under uvicorn, one of any number on the same port."""
    subscribe(handlers)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))

    class Server(uvicorn.Server):
        async def startup(self, *arguments: Any, **options: Any) -> None:
            await super().startup(*arguments, **options)
            tell(ready=True)

    # As under uvicorn's own command, which is none of Django's.
    sys.argv = ["uvicorn", "tests.crash_project.asgi:application"]
    Server(uvicorn.Config(application, log_level="warning", access_log=False)).run(sockets=[listener])
    return 0


def subscribe(handlers: Handlers | None) -> None:
    """Subscribe handlers of the library."""
    for event_type, names in (handlers or {}).items():
        for name in names:
            subscribe_to(event_type, getattr(library, name), name=name)


# Who emits


class _Undone(Exception):
    """The transaction is to be rolled back."""


def produce(tell: Teller, *, keys: Sequence[str], seed: int, backlog: int) -> int:
    """Emit until killed, each event in one transaction with its business row; some are rolled back."""
    generator = random.Random(seed)
    tell(ready=True)
    for nth in range(10**9):
        try:
            while nth % 5 == 0 and Delivery.objects.count() > backlog:
                time.sleep(_LOOK_EVERY_S)
            with transaction.atomic():
                count = _transact(generator, f"{tell.name}/{nth}", keys)
        except _Undone as undone:
            tell(rolled_back=undone.args[0])
        except DatabaseError:  # only where that is what is tried out: the business would try again
            connection.close()
            time.sleep(_LOOK_EVERY_S)
        else:
            tell(committed=count)
    return 0


def _transact(generator: random.Random, name: str, keys: Sequence[str]) -> int:
    is_undone = generator.random() < 0.1
    if is_undone:
        name = f"rolled-back/{name}"
    rows = [Emitted(token=f"{name}/{n}") for n in range(generator.randint(1, 20))]
    if generator.random() < 0.5:
        rows.append(_with_key(f"{name}/key", generator.choice(keys)))
    Emitted.objects.bulk_create(rows)
    emit_many([("placed", _payload(row)) for row in rows if not row.key])
    for row in rows:
        if row.key:
            emit("placed", _payload(row), key=row.key)
    if generator.random() < 0.1:
        try:
            with transaction.atomic():
                row = Emitted.objects.create(token=f"rolled-back/{name}/savepoint")
                emit("placed", _payload(row))
                raise _Undone
        except _Undone:
            pass
    if is_undone:
        raise _Undone(len(rows))
    return len(rows)


def _with_key(token: str, key: str) -> Emitted:
    # Locked to the end of the transaction, so those of one key do not overlap, not even with one whose
    # process was killed and that the database has yet to end.
    turn = Turn.objects.select_for_update().get(pk=key)
    turn.last += 1
    turn.save()
    return Emitted(token=token, key=key, number=turn.last)


def _payload(row: Emitted) -> dict[str, Any]:
    return {"token": row.token, "key": row.key, "number": row.number}


def emit_and_vanish(tell: Teller, *, key: str) -> int:
    """Commit one event with a key, which only a relay delivers, and be gone."""
    with transaction.atomic():
        row = _with_key(f"{tell.name}/last", key)
        row.save(force_insert=True)
        emit("placed", _payload(row), key=key)
    os._exit(0)


def emit_events(
    tell: Teller,
    *,
    event_type: str,
    count: int,
    pause_s: float = 0.0,
    key: str | None = None,
    stays: bool = False,
) -> int:
    """Emit `{"n": 0}`, `{"n": 1}` and so on, each in a transaction of its own; then end, or stay."""
    tell(ready=True)
    for n in range(count):
        try:
            with transaction.atomic():
                emit(event_type, {"n": n}, key=key)
        except DatabaseError as error:
            tell(failed=n, error=f"{type(error).__name__}: {error}"[:300])
            connection.close()
        else:
            tell(emitted=n)
        time.sleep(pause_s)
    while stays:
        time.sleep(1)
    return 0


# Who prepares, looks and judges


def prepare(tell: Teller, *, keys: Sequence[str]) -> int:
    """Make the tables of both services."""
    for alias in ("default", "orders"):
        call_command("migrate", database=alias, run_syncdb=True, verbosity=0, interactive=False)
    Turn.objects.bulk_create([Turn(key=key) for key in keys])
    return 0


def watch(tell: Teller) -> int:
    """Tell again and again how much is owed by each service."""
    tell(ready=True)
    while True:
        try:
            emitted = Emitted.objects.using("default").count()
            out = Delivery.objects.using("default").count()
            owed = [out, Delivery.objects.using("orders").count()]
            tell(owed=owed, emitted=emitted, effects=Effect.objects.using("orders").count())
        except DatabaseError:
            connections.close_all()
        time.sleep(_LOOK_EVERY_S)


def judge(tell: Teller, *, handlers: Sequence[str]) -> int:
    """Hold what was committed against what was done."""
    # A process that was killed between a handler's commit and the removal of its event left that behind.
    upkeep._ORPHAN_MS = -1000
    for service in ("default", "orders"):
        settings.AEVENTS = {**settings.AEVENTS, "STORE": service}
        while upkeep.tidy():
            pass
    emitted = set(Emitted.objects.values_list("token", flat=True))
    done: Counter[tuple[str, str]] = Counter()
    last: Counter[tuple[str, str]] = Counter()
    inversions = []
    effects = Effect.objects.using("orders").order_by("pk").values_list("handler", "token", "key", "number")
    for handler, token, key, number in effects.iterator():
        done[handler, token] += 1
        if key and done[handler, token] == 1:
            if number != last[handler, key] + 1:
                inversions.append(f"{handler} {key}: {number} after {last[handler, key]}")
            last[handler, key] = number
    lost = [f"{h} {token}" for token in emitted for h in handlers if not done[h, token]]
    ghosts = sorted({token for _, token in done if token not in emitted})
    tell(
        verdict={
            "emitted": len(emitted),
            "with_key": Emitted.objects.exclude(key="").count(),
            "effects": sum(done.values()),
            "lost": len(lost),
            "sent_after_rollback": len(ghosts),
            "twice": sum(count > 1 for count in done.values()),
            "inversions": len(inversions),
            "dead": _count(Delivery, state=State.DEAD),
            "deliveries_left": _count(Delivery),
            "events_left": _count(StoredEvent),
            "seen": Seen.objects.using("orders").count(),
        },
        examples=[*lost[:3], *ghosts[:3], *inversions[:3]],
    )
    return 0


def _count(model: Any, **where: Any) -> int:
    return sum(model.objects.using(alias).filter(**where).count() for alias in ("default", "orders"))


ROLES: dict[str, Callable[..., int]] = {
    "worker": work,
    "receiver": receive,
    "producer": produce,
    "last": emit_and_vanish,
    "emitter": emit_events,
    "prepare": prepare,
    "watch": watch,
    "judge": judge,
}
