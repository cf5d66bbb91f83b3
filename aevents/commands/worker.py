"""`worker`: this process relays, and listens where `LISTEN` says, until a signal ends it."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.core.management.base import CommandError
from django.db import DatabaseError
from django.dispatch import Signal

from aevents import inbox, outage, routes, signals, status, tables
from aevents import relay as relays
from aevents.commands.base import Terminal, Verb, no_store, unusable
from aevents.courier import courier
from aevents.keeper import keeper
from aevents.listening import listening, mistakes
from aevents.loops import why_no_threads
from aevents.relay import relay
from aevents.settings import conf
from aevents.tables import OUT

#: The exit code where a second signal ended it at once.
STOPPED = 1
_REFRESH_S = 1.0
_LOOK_EVERY_S = 0.05
_FAILING_S = 60.0  # for how long a failure is shown
_LISTENING_S = 6.0  # what is being taken from a broker has to come to its end
_PATIENCE_S = 30.0  # of `--once`, for a database that is away
_logger = logging.getLogger("aevents")


class Worker(Verb):
    name = "worker"
    help = (
        "Try what is owed, and take what comes from where LISTEN says, until SIGTERM or Ctrl+C: then claim no"
        " more, let what runs end within LIMITS['DRAIN_S'], give the rest back, exit 0. A second signal stops"
        " at once, with exit code 1."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--once", action="store_true", help="try all that is due now, listening nowhere, then end"
        )

    def run(self, terminal: Terminal, options: Mapping[str, Any]) -> int:
        _make_sure(is_patient=not options["once"])
        counts = Counts()
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(_signals())
            if terminal.is_live or options["once"]:
                stack.enter_context(counts.counting())
            stack.enter_context(_relaying())
            if options["once"]:
                _try_all(stop, counts, terminal)
            else:
                listening.begin()
                _try_until(stop, counts, terminal)
            _drain(terminal)
        if options["once"] or terminal.is_live:
            terminal.say(counts.line().capitalize() + ".")
        return 0


class Stop:
    """Whether a signal has asked for the end; waiting for it ends with it."""

    def __init__(self) -> None:
        self.is_asked = False
        # Not `threading.Event`: a handler that sets it may interrupt who holds its lock.
        self._wakes, self._wake = socket.socketpair()
        self._wake.setblocking(False)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the signal, at most `timeout_s`; tell whether it came."""
        if not self.is_asked:
            select.select([self._wakes], [], [], timeout_s)
        return self.is_asked

    def ask(self, *_: object) -> None:
        """Take a signal; the second one ends the process."""
        if self.is_asked:
            with contextlib.suppress(OSError):
                os.write(2, b"\nStopped. What ran is tried again when its lease ends, in a minute or less.\n")
            os._exit(STOPPED)
        self.is_asked = True
        with contextlib.suppress(OSError):
            self._wake.send(b"!")

    def close(self) -> None:
        self._wakes.close()
        self._wake.close()


class Counts:
    """What became of the tries since the start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._failed_at: dict[str, float] = {}

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count meanwhile."""
        heard: dict[Signal, Any] = {
            signals.event_delivered: lambda service, **_: self._add("delivered", ok=service),
            signals.handler_succeeded: lambda handler, **_: self._add("handled", ok=handler),
            signals.delivery_failed: lambda service, **_: self._add("failed", failed=service),
            signals.handler_failed: lambda handler, **_: self._add("failed", failed=handler),
            signals.delivery_dead: lambda target, **_: self._add("dead", failed=target),
        }
        for each, receiver in heard.items():
            each.connect(receiver)
        try:
            yield
        finally:
            for each, receiver in heard.items():
                each.disconnect(receiver)

    def line(self) -> str:
        """Return the counts in words, with those that failed lately."""
        parts = [f"{self._counts['delivered']:,} delivered", f"{self._counts['handled']:,} handled"]
        parts += [f"{self._counts[word]:,} {word}" for word in ("failed", "dead") if self._counts[word]]
        since = time.monotonic() - _FAILING_S
        with self._lock:
            failing = sorted(name for name, at in self._failed_at.items() if at >= since)
        return ", ".join(parts) + (f"; failing: {', '.join(failing)}" if failing else "")

    def _add(self, what: str, *, ok: str = "", failed: str = "") -> None:
        with self._lock:
            self._counts[what] += 1
            self._failed_at.pop(ok, None)
            if failed:
                self._failed_at[failed] = time.monotonic()


def _make_sure(*, is_patient: bool) -> None:
    """Raise what is wrong for good; a database that is down for a while is not, to who is patient."""
    if (reason := tables.why_not()) is not None:
        raise no_store(reason)
    if (reason := why_no_threads()) is not None:
        raise CommandError(f"The worker needs threads: {reason}. Start it without that.")
    if found := mistakes():
        raise CommandError("\n".join(["The worker cannot listen.", *found]))
    try:
        tables.deliveries().exists()
    except DatabaseError as error:
        tables.connection().close()
        if not is_patient or not outage.passes(error):
            raise unusable(error) from error
        outage.tell("The worker waits for its database", error)


@contextlib.contextmanager
def _signals() -> Iterator[Stop]:
    stop = Stop()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, stop.ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.close()


@contextlib.contextmanager
def _relaying() -> Iterator[None]:
    relay.is_worker, relay.is_stopped = True, False
    keeper.begin(at_once=True)
    _logger.info("The worker of %s begins", conf().SERVICE)
    try:
        yield
    finally:
        relay.is_worker = False
        _logger.info("The worker of %s has ended", conf().SERVICE)


def _try_until(stop: Stop, counts: Counts, terminal: Terminal) -> None:
    wait_s = _REFRESH_S
    while not stop.wait(wait_s):
        keeper.begin()  # in case it could not be started before
        if terminal.is_live:
            began = time.monotonic()
            terminal.show(f"{_owed()}; {counts.line()}")
            # Where the tables are long, looking must not be all that the database does.
            wait_s = max(_REFRESH_S, 10 * (time.monotonic() - began))


def _owed() -> str:
    try:
        count, oldest_s = status.owed()
    except DatabaseError as error:
        tables.connection().close()
        return outage.explain(error)
    return f"{count:,} owed (oldest {status.age(oldest_s)})" if count else "nothing owed"


def _try_all(stop: Stop, counts: Counts, terminal: Terminal) -> None:
    """Wait until all has been tried that was due when this began."""
    due_by_ms = status.clock_ms()

    def look(items: Sequence[object]) -> list[bool]:
        # In the keeper's thread, where no claim is halfway from the store to who tries it.
        is_idle = not (courier.owed or inbox.running()) and keeper.owed <= len(items)
        return [is_idle and not any(map(_has_room, status.claimable(due_by_ms))) for _ in items]

    while not stop.wait(_LOOK_EVERY_S):
        try:
            if keeper.ask_all(look, [None], patience_s=_PATIENCE_S)[0].result():
                return
        except DatabaseError as error:
            raise unusable(error) from error
        terminal.show(counts.line())


def _has_room(place: tuple[int, str]) -> bool:
    """Tell whether the target takes more; a service that is down does not, and is not waited for."""
    direction, target = place
    destination = routes.destination_named(target) if direction == OUT else None
    return destination is None or courier.room(destination) > 0


def _drain(terminal: Terminal) -> None:
    """End within the bound: nothing is claimed any more, what runs comes to its end or is given back."""
    ends = time.monotonic() + conf().LIMITS.DRAIN_S
    terminal.show("Waiting for what runs; once more stops at once")
    listening.end(min(_LISTENING_S, ends - time.monotonic()))
    relay.stop()
    # A claim that is halfway is passed on before the keeper does this.
    with contextlib.suppress(Exception):
        keeper.ask_all(lambda items: items, [None], patience_s=1.0)[0].result(1.0)
    relays.end(max(0.0, ends - time.monotonic()))
    terminal.clear()
