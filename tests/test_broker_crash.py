"""A service that emits, a broker, a service that handles: whoever is killed, every effect is there once.

Both services are whole ones with a database each (`OUTBOX`, `INBOX`), the broker is a real one of the test's
own on another port. `tox -e crash` does it with 10,000 events for each transport; AEVENTS_CRASH_SEED repeats
a plan.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import brokers, crash_harness
from tests.brokers import OwnBroker
from tests.crash_harness import Plan

#: Where a broker of the test's own is found, the options of its transport, and whether it keeps order.
KINDS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "redis": ("tests.own_redis.OwnRedis", {"redis": {"IDLE_S": 3}}, False),
    "rabbitmq": ("tests.own_rabbitmq.OwnRabbit", {}, False),
    "nats": ("tests.own_nats.OwnNats", {"nats": {"ACK_WAIT_S": 3}}, False),
    "kafka": ("tests.own_kafka.OwnKafka", {"kafka": {"SESSION_S": 6}}, True),
}
_KINDS = os.environ.get("AEVENTS_CRASH_BROKERS", ",".join([*KINDS, "tcp"])).split(",")


def own_broker(kind: str, folder: Path, *, is_safe: bool = True) -> OwnBroker:
    """Return a broker of this kind; where its client or server is missing, skip visibly or, in CI, fail."""
    module, _, name = KINDS[kind][0].rpartition(".")
    try:
        made: OwnBroker = getattr(importlib.import_module(module), name)(folder, is_safe=is_safe)
    except (ImportError, FileNotFoundError) as error:
        brokers.missing(f"{kind}: {error}")
        raise
    return made


@contextlib.contextmanager
def killed_now_and_then(broker: OwnBroker, times: int, seed: int) -> Iterator[None]:
    """Kill the broker -9 and start it again, so many times, or until the end."""
    over, generator = threading.Event(), random.Random(seed)

    def kill() -> None:
        for nth in range(times):
            # The first one when queues and groups are there: RabbitMQ 3.10 does not survive it before.
            if over.wait(generator.uniform(2.0, 5.0) + (0 if nth else 6.0)):
                return
            broker.restart(generator.uniform(0.1, 2.0), bury=crash_harness.GROUP)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _survives(kind: str, folder: Path, events: int, kills: int, broker_kills: int) -> None:
    seed = int(os.environ.get("AEVENTS_CRASH_SEED") or random.getrandbits(32))
    print(f"\nAEVENTS_CRASH_SEED={seed}", flush=True)
    if kind == "tcp":  # nobody stands between the two
        broker_kills = 0
        plan = Plan("postgresql", events, kills, seed, backlog=events // 4, scheme="tcp")
        verdict = crash_harness.run(plan, folder)
    else:
        verdict = _by_broker(kind, folder, events, kills, broker_kills, seed)
    print(f"{kind}, killed {broker_kills} times: {verdict}", flush=True)
    assert not verdict.problems, "\n".join([str(verdict), *verdict.problems])


def _by_broker(
    kind: str, folder: Path, events: int, kills: int, broker_kills: int, seed: int
) -> crash_harness.Verdict:
    _, options, keeps_order = KINDS[kind]
    broker = own_broker(kind, folder / "broker")
    plan = Plan(
        "postgresql", events, kills, seed, backlog=events // 4, transports=options, keeps_order=keeps_order
    )
    broker.start()
    try:
        with killed_now_and_then(broker, broker_kills, seed):
            return crash_harness.run(plan, folder, broker=broker, restarts=broker_kills)
    finally:
        broker.kill()


@pytest.mark.parametrize(
    "kind",
    [kind if kind in ("redis", "tcp") else pytest.param(kind, marks=pytest.mark.crash) for kind in _KINDS],
)
def test_every_effect_is_there_once_whoever_is_killed(kind: str, tmp_path: Path) -> None:
    _survives(kind, tmp_path, events=500, kills=10, broker_kills=2)


@pytest.mark.crash
@pytest.mark.parametrize("kind", _KINDS)
def test_it_is_after_ten_thousand_events(kind: str, tmp_path: Path) -> None:
    events = int(os.environ.get("AEVENTS_CRASH_EVENTS", "10000"))
    kills = int(os.environ.get("AEVENTS_CRASH_KILLS", "60"))
    _survives(kind, tmp_path, events, kills, broker_kills=10)
