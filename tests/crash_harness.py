"""The crash harness: services whose processes are killed at random, and what became of their events.

A plan in, a verdict out. The producers of `shop` write a business row and emit in one transaction, its
worker relays; the receivers of `orders`, replicas behind one address, have two sync handlers with
`INBOX`. Each process is killed -9 some 10 to 500 ms after it has reported ready, and started again; some
lives last for seconds, so that there is more to lose. In the end, with no more kills, the business rows are
held against what the handlers did.
"""

from __future__ import annotations

import contextlib
import functools
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aevents.transports import scheme_of, transport_class
from tests import databases
from tests.brokers import OwnBroker
from tests.crash_project.running import Launcher, Process

HANDLERS = ["first", "second"]
LEASE_S = 6.0
_KEYS = 40  # of each producer
_LIFE_S = (0.010, 0.500)
_LONG_LIFE_S = (0.500, 16.0)
_DRAINS_WITHIN_S = 600.0
_BETWEEN_TROUBLES_S = 0.5
# Tried again at once, and as often as it takes: each try may meet a process that is being killed.
_FAST: dict[str, Any] = {"SCHEDULE": [0.1] * 5000, "UNSIGNED": "accept"}


@dataclass(frozen=True)
class Plan:
    """So many events, and kills within half a second after "ready", at the least."""

    kind: str
    events: int
    kills: int
    seed: int
    troubles: int = 0  # of another kind, in the place of kills
    backlog: int = 2000  # owed by the shop: then its producers wait
    producers: int = 2
    receivers: int = 2
    transports: dict[str, Any] = field(default_factory=dict)  # their options
    keeps_order: bool = True  # of the events of a key, all the way
    scheme: str = "http"  # or "tcp", where there is no broker


@dataclass
class Verdict:
    """What was counted at the end. Nothing but `problems` is a failure."""

    plan: Plan
    kills: Counter[str] = field(default_factory=Counter)  # of short lives
    late_kills: int = 0  # of long ones
    rolled_back: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    took_s: float = 0.0
    drained_s: float = 0.0

    def __str__(self) -> str:
        kills = ", ".join(f"{count} {role}" for role, count in sorted(self.kills.items()))
        counts = self.counts
        return (
            f"{self.plan.kind}, AEVENTS_CRASH_SEED={self.plan.seed}:"
            f" {counts.get('emitted', 0):,} events ({counts.get('with_key', 0):,} with a key,"
            f" {self.rolled_back:,} more rolled back), {self.kills.total():,} kills -9 within 10 to"
            f' 500 ms after "ready" ({kills}) and {self.late_kills:,} later;'
            f" lost {counts.get('lost')}, sent after rollback {counts.get('sent_after_rollback')},"
            f" effects {counts.get('effects', 0):,}, twice {counts.get('twice')},"
            f" out of order {counts.get('inversions')}, dead {counts.get('dead')};"
            f" {self.took_s:.0f} s, of which {self.drained_s:.0f} s to drain"
        )


Trouble = Callable[[Sequence[str]], None]
_GOES_ON_FOR_S = 1200.0  # where whoever is to kill a broker, say, has died itself
#: What brokers call those who handle.
GROUP = "aevents.orders"


def run(
    plan: Plan,
    folder: Path,
    tell: Callable[[str], None] = print,
    *,
    trouble: Trouble | None = None,
    broker: OwnBroker | None = None,
    restarts: int = 0,
) -> Verdict:
    """Do it, and return the verdict.

    `trouble` is made again and again, given the URLs of both databases; then nobody is killed. With a
    `broker` the events go that way, and the receivers are workers that listen to it; it goes on until
    somebody has restarted the broker so many times.
    """
    with contextlib.ExitStack() as stack:
        urls = [
            stack.enter_context(databases.temporary(plan.kind, name, folder)) for name in ("shop", "orders")
        ]
        port = stack.enter_context(reserved_port())
        late = "" if broker is None else transport_class(scheme_of(broker.url)).__module__
        launcher = stack.enter_context(
            Launcher(folder / "log", STORE_URL=urls[0], ORDERS_URL=urls[1], LATE=late)
        )
        making = functools.partial(trouble, urls) if trouble is not None else None
        return _Run(plan, launcher, port, tell, making, broker, restarts).run()


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port that nobody else is given; who is to listen on it shares it by SO_REUSEPORT."""
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reservation.bind(("127.0.0.1", 0))
        yield reservation.getsockname()[1]


class _Slot:
    """One process that is there again and again."""

    def __init__(self, role: str, start: Callable[[], Process], life_s: Callable[[], float]) -> None:
        self.role = role
        self._start = start
        self._life_s = life_s
        self.begin()

    def begin(self) -> None:
        """Start it, and draw how long it lives."""
        self.process = self._start()
        self.life_s = self._life_s()
        self.killed_after_s: float | None = None

    def dies_in(self) -> float:
        """Return how long it has to live, as far as one can say."""
        ready_at = self.process.ready_at
        return 1.0 if ready_at is None else ready_at + self.life_s - time.monotonic()

    def kill(self) -> None:
        """Kill it, once."""
        if self.killed_after_s is None and self.process.ready_at is not None:
            self.process.kill(signal.SIGKILL)
            self.killed_after_s = time.monotonic() - self.process.ready_at


class _Run:
    def __init__(
        self,
        plan: Plan,
        launcher: Launcher,
        port: int,
        tell: Callable[[str], None],
        trouble: Callable[[], None] | None = None,
        broker: OwnBroker | None = None,
        restarts: int = 0,
    ) -> None:
        self._plan = plan
        self._broker = broker
        self._restarts = restarts
        self._trouble = trouble
        self._launcher = launcher
        self._tell = tell
        self._random = random.Random(plan.seed)
        self._verdict = Verdict(plan)
        self._ended: list[Process] = []
        self._slots: list[_Slot] = []
        self._committed = 0
        limits = {"ATTEMPT_S": 2.0, "CONNECT_S": 0.5, "ANSWER_S": 1.8, "HANDLER_THREADS": 4}
        self._shop = {
            **_FAST,
            "SERVICE": "shop",
            "OUTBOX": True,
            "SERVICES": {"orders": f"http://127.0.0.1:{port}/events/"},
            "SUBSCRIPTIONS": {"placed": ["orders"]},
            "LIMITS": limits,
        }
        self._orders = {**_FAST, "SERVICE": "orders", "STORE": "orders", "INBOX": True, "LIMITS": limits}
        self._receiving: dict[str, Any] = {"port": port, "handlers": {"placed": HANDLERS}}
        self._receiver_role = "receiver"
        if broker is not None:
            bus = {"BROKERS": {"bus": broker.url}, "TRANSPORTS": plan.transports}
            self._shop.update(bus, SUBSCRIPTIONS={"*": ["bus"]}, SERVICES={})
            self._orders.update(bus, LISTEN=["bus"])
            self._receiver_role = "worker"
        elif plan.scheme == "tcp":
            address = f"tcp://127.0.0.1:{port}"
            self._shop.update(SERVICES={"orders": address})
            self._orders.update(LISTEN=[address], TRANSPORTS={"tcp": {"REUSE_PORT": True}})
            self._receiver_role = "worker"
        if self._receiver_role == "worker":
            del self._receiving["port"]

    def run(self) -> Verdict:
        began = time.monotonic()
        keys = [key for slot in range(self._plan.producers) for key in self._keys(slot)]
        assert self._launcher.start("prepare", self._shop, keys=keys).wait() == 0
        self._watch = self._launcher.start("watch", self._shop).wait_until_ready()
        self._kill_and_start()
        if self._broker is not None:  # with nobody there: it must know those who come by what it kept
            self._broker.restart(bury=GROUP)
        killed_at = time.monotonic()
        self._drain(keys)
        self._verdict.drained_s = time.monotonic() - killed_at
        judge = self._launcher.start("judge", self._shop, handlers=HANDLERS)
        assert judge.wait(600.0) == 0, judge.printed()
        self._judge(judge.said[-1])
        self._verdict.took_s = time.monotonic() - began
        return self._verdict

    # While they are killed

    def _kill_and_start(self) -> None:
        plan = self._plan
        starts: list[tuple[str, Callable[[], Process]]] = [
            *(("producer", functools.partial(self._producer, n)) for n in range(plan.producers)),
            ("worker", self._worker),
            *[("receiver", self._receiver)] * plan.receivers,
        ]
        self._slots = [_Slot(role, start, self._life_s) for role, start in starts]
        if self._trouble is not None:
            self._make_trouble(self._trouble)
        else:
            tells_at, ends = 0.0, time.monotonic() + _GOES_ON_FOR_S
            while self._goes_on():
                if time.monotonic() > ends:
                    self._problem(
                        f"only {self._committed} events and too few kills within {_GOES_ON_FOR_S} s"
                    )
                    break
                self._wait(min(1.0 if slot.killed_after_s else slot.dies_in() for slot in self._slots))
                for slot in self._slots:
                    self._look_at(slot)
                if time.monotonic() >= tells_at:
                    tells_at = time.monotonic() + 15.0
                    self._tell_how_it_stands()
        for slot in self._slots:
            slot.process.kill(signal.SIGKILL)
            slot.process.wait()
            self._count(slot.process)

    def _goes_on(self) -> bool:
        broker = self._broker
        return (
            self._committed < self._plan.events
            or self._verdict.kills.total() < self._plan.kills
            or (broker is not None and broker.restarts < self._restarts)
        )

    def _make_trouble(self, trouble: Callable[[], None]) -> None:
        made, next_at = 0, 0.0
        for slot in self._slots:
            slot.process.wait_until_ready()
        ends = time.monotonic() + _DRAINS_WITHIN_S
        while self._committed < self._plan.events or made < self._plan.troubles:
            if time.monotonic() > ends:
                self._problem(f"only {self._committed} events within {_DRAINS_WITHIN_S} s")
                return
            self._wait(_BETWEEN_TROUBLES_S / 4)
            for slot in self._slots:
                self._count(slot.process)
                if slot.process.is_over:
                    self._end(slot, slot.process.code)
                    slot.begin()
            if time.monotonic() >= next_at:
                trouble()
                made += 1
                next_at = time.monotonic() + self._random.uniform(0.5, 1.5) * _BETWEEN_TROUBLES_S

    def _wait(self, wait_s: float) -> None:
        with self._launcher.changed:
            if wait_s > 0:
                self._launcher.changed.wait(wait_s)

    def _tell_how_it_stands(self) -> None:
        owed = self._watch.said[-1]["owed"] if self._watch.said else None
        kills = self._verdict.kills.total()
        self._tell(
            f"{self._committed:,} events, {kills:,} kills and {self._verdict.late_kills:,}, owed {owed}"
        )
        self._watch.said = self._watch.said[-1:]

    def _look_at(self, slot: _Slot) -> None:
        process = slot.process
        self._count(process)
        if process.is_over:
            self._end(slot, process.code)
            slot.begin()
        elif slot.dies_in() <= 0:
            slot.kill()

    def _life_s(self) -> float:
        """Draw how long the next one lives: short where there were fewer kills than events, by the plan."""
        plan = self._plan
        is_behind = self._verdict.kills.total() * plan.events <= self._committed * plan.kills
        is_short = is_behind or self._random.random() < 0.2
        return self._random.uniform(*(_LIFE_S if is_short else _LONG_LIFE_S))

    def _end(self, slot: _Slot, code: int | None) -> None:
        self._count(slot.process)
        if code == -signal.SIGKILL and slot.killed_after_s is not None:
            if slot.killed_after_s <= _LIFE_S[1]:
                self._verdict.kills[slot.role] += 1
            else:
                self._verdict.late_kills += 1
        else:
            self._problem(
                f"{slot.process.name} ended by itself with {code}: {slot.process.printed()[-2000:]}"
            )

    def _count(self, process: Process) -> None:
        said, process.said = process.said, []
        self._committed += sum(fact.get("committed", 0) for fact in said)
        self._verdict.rolled_back += sum(fact.get("rolled_back", 0) for fact in said)

    def _keys(self, slot: int) -> list[str]:
        return [f"{slot}/{n}" for n in range(_KEYS)]

    def _producer(self, slot: int) -> Process:
        return self._launcher.start(
            "producer",
            {**self._shop, "RELAY": slot % 2 == 0},
            lease_s=LEASE_S,
            log="producers",
            keys=self._keys(slot),
            seed=self._random.getrandbits(32),
            backlog=self._plan.backlog,
        )

    def _worker(self) -> Process:
        return self._launcher.start("worker", self._shop, lease_s=LEASE_S, log="workers")

    def _receiver(self) -> Process:
        return self._launcher.start(
            self._receiver_role, self._orders, lease_s=LEASE_S, log="receivers", **self._receiving
        )

    # When they are no more

    def _drain(self, keys: list[str]) -> None:
        """Let all that is owed arrive, then one more event that only the worker delivers."""
        worker, receiver = self._worker().wait_until_ready(), self._receiver().wait_until_ready()
        self._wait_until_empty()
        last = self._launcher.start("last", {**self._shop, "RELAY": False}, lease_s=LEASE_S, key=keys[0])
        assert last.wait() == 0, last.printed()
        self._wait_until_empty()
        if worker.is_over or worker.stop() != 0:
            self._problem(f"the worker ended with {worker.code}: {worker.printed()}")
        if receiver.is_over or receiver.stop() not in (0, -signal.SIGTERM):  # uvicorn ends by its signal
            self._problem(f"the receiver ended with {receiver.code}: {receiver.printed()}")

    def _wait_until_empty(self) -> None:
        self._watch.said = self._watch.said[:0]
        try:
            self._watch.wait_for(
                lambda: len(self._watch.said) > 2 and self._is_all_there(self._watch.said[-1]),
                "nothing owed",
                _DRAINS_WITHIN_S,
            )
        except AssertionError as error:
            self._problem(f"{error}: {self._watch.said[-1:]}")

    def _is_all_there(self, said: dict[str, Any]) -> bool:
        # What is in a broker is owed by nobody, so the effects are counted too.
        wanted = said["emitted"] * len(HANDLERS) if self._receiver_role == "worker" else 0
        return said["owed"] == [0, 0] and said["effects"] >= wanted

    def _judge(self, said: dict[str, Any]) -> None:
        counts = self._verdict.counts = said["verdict"]
        for name in ("lost", "sent_after_rollback", "twice", "inversions", "dead", "deliveries_left"):
            if counts[name] and (name != "inversions" or self._plan.keeps_order):
                self._problem(f"{name}: {counts[name]} {said['examples']}")
        if counts["effects"] != counts["emitted"] * len(HANDLERS):
            self._problem(f"{counts['effects']} effects of {counts['emitted']} events")
        if counts["events_left"]:
            self._problem(f"{counts['events_left']} events of which nothing is owed any more are left")
        if counts["emitted"] < self._plan.events:
            self._problem(f"only {counts['emitted']} events")

    def _problem(self, text: str) -> None:
        self._verdict.problems.append(text)
