"""Kills every process again and again, starts it anew, and counts what came of the orders."""

from __future__ import annotations

import contextlib
import queue
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from aevents.demo.facts import Fact
from aevents.demo.fleet import Fleet, Program
from aevents.demo.screen import Screen
from aevents.demo.watch import Interrupted, WentWrong

_SETTINGS = "aevents.demo.crash.settings"
_ROLES = "aevents.demo.crash.roles"
_SERVICES = ("orders", "payments")
_PROGRAMS = {
    "payments": Program("payments", _SETTINGS),
    "emitter": Program("orders", _SETTINGS, (_ROLES, "emitter")),
    "worker": Program("orders", _SETTINGS, (_ROLES, "worker")),
}
_ORDERS_FIRST = 50
_KILLS_MORE_OF_EACH = 2
_LIVES_S = (0.1, 1.0)
_DOWN_S = 1.0
_WITHIN_S = 60.0
_LOOK_S = 0.05
_COUNT_EVERY_S = 0.25


@dataclass(frozen=True)
class Counts:
    """What the tables of both services hold, read without aevents."""

    emitted: int
    handled: int
    lost: int
    twice: int
    sent_after_rollback: int
    owed: int


class Crash:
    """One run, with the processes of `fleet`."""

    def __init__(self, fleet: Fleet, screen: Screen, facts: queue.SimpleQueue[Fact]) -> None:
        self._fleet = fleet
        self._screen = screen
        self._facts = facts
        self._started: Counter[str] = Counter()
        self._must_end: Counter[str] = Counter()
        self._kills = 0

    def play(self) -> None:
        """Do it and show it; raises `WentWrong` where anything was lost or came twice."""
        self._screen.title(
            "orders places orders, a row and an emit() in one transaction; every tenth is rolled back."
            " Its worker brings the events to payments, which charges each order."
        )
        for name in _PROGRAMS:
            self._start(name)
        self._wait(lambda: self._count().handled >= _ORDERS_FIRST)
        for name, title in (
            (
                "payments",
                "kill -9: payments, in the midst of its handlers. orders goes on, and owes it more.",
            ),
            ("emitter", "kill -9: the process that places orders, in the midst of a transaction."),
            ("worker", "kill -9: the worker, with events on their way."),
        ):
            self._screen.title(title)
            self._kill(name)
            self._wait_for(_DOWN_S)
            self._start(name)
        victims = [*_PROGRAMS] * _KILLS_MORE_OF_EACH
        random.shuffle(victims)
        self._screen.title(f"And {len(victims)} times more, in any order, at any moment.")
        for name in victims:
            self._wait_for(random.uniform(*_LIVES_S))  # noqa: S311 - chance is enough
            self._kill(name)
            self._start(name)
        self._screen.title("No more orders, and no more kills: what is still owed arrives.")
        self._end("emitter")
        self._wait(lambda: self._count().owed == 0)
        for name in ("worker", "payments"):
            self._end(name)
        self._show(self._count())

    def _show(self, counts: Counts) -> None:
        is_well = counts.handled == counts.emitted and not (
            counts.lost or counts.twice or counts.sent_after_rollback
        )
        self._screen.say(
            f"\n   emitted {counts.emitted:,}, handled {counts.handled:,}, lost {counts.lost},"
            f" twice {counts.twice}",
            "bold green" if is_well else "bold red",
        )
        self._screen.say(
            f"   after {self._kills} kills -9; charged though rolled back: {counts.sent_after_rollback}"
        )
        if not is_well:
            raise WentWrong("Each order that was committed should have been charged once, and no other one.")

    # The processes

    def _start(self, name: str) -> None:
        program = _PROGRAMS[name]
        before = self._started[program.service]
        self._fleet.start(name, program)
        self._wait(lambda: self._started[program.service] > before)

    def _kill(self, name: str) -> None:
        self._must_end[name] += 1
        pid = self._fleet.kill(name)
        self._kills += 1
        counts = self._count()
        detail = f"pid {pid}, with {counts.emitted} emitted and {counts.handled} handled"
        self._screen.fact(Fact(time.time(), _PROGRAMS[name].service, "killed", name, detail=detail))

    def _end(self, name: str) -> None:
        self._must_end[name] += 1
        code = self._fleet.end(name)
        if code:
            raise WentWrong(f"{name} ended with exit code {code}.", name)

    # Waiting, and meanwhile what they report

    def _wait(self, is_so: Callable[[], bool]) -> None:
        ends = time.monotonic() + _WITHIN_S
        while not is_so():
            if time.monotonic() > ends:
                raise WentWrong(f"Not within {_WITHIN_S:.0f} s, with {self._count()}.")
            self._follow()

    def _wait_for(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._follow()

    def _follow(self) -> None:
        if len(self._started) == len(_SERVICES):  # so there are tables
            counts = self._count()
            self._screen.progress(
                f"{counts.emitted} emitted, {counts.handled} handled, {self._kills} kills -9"
            )
        with contextlib.suppress(queue.Empty):
            fact = self._facts.get(timeout=_LOOK_S)
            while True:
                self._take(fact)
                fact = self._facts.get_nowait()

    def _take(self, fact: Fact) -> None:
        match fact.what:
            case "interrupted":
                raise Interrupted(int(fact.who))
            case "started":
                self._started[fact.service] += 1
                self._screen.fact(fact)
            case "ended" if self._must_end[fact.service]:
                self._must_end[fact.service] -= 1
            case "ended":
                raise WentWrong(f"{fact.service} ended.", fact.service)

    # What there is in the databases

    def _count(self) -> Counts:
        orders, payments = (self._fleet.database(name).as_uri() + "?mode=rw" for name in _SERVICES)
        with contextlib.closing(sqlite3.connect(orders, uri=True, timeout=20.0)) as connection:
            connection.execute("ATTACH ? AS payments", (payments,))
            return Counts(*connection.execute(_COUNT).fetchone())


# What is owed by orders is looked at before what is owed by payments, which has it before the other lets go.
_COUNT = """
    WITH
        placed AS (SELECT reference FROM crash_order),
        charged AS (SELECT reference FROM payments.crash_charge)
    SELECT
        (SELECT count(*) FROM placed),
        (SELECT count(*) FROM placed WHERE reference IN charged),
        (SELECT count(*) FROM placed WHERE reference NOT IN charged),
        (SELECT count(*) - count(DISTINCT reference) FROM charged),
        (SELECT count(*) FROM charged WHERE reference NOT IN placed),
        (SELECT count(*) FROM main.aevents_delivery) + (SELECT count(*) FROM payments.aevents_delivery)
"""
