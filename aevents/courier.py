"""The process's one event loop for deliveries: parcels from any thread in, results out.

One lazily started daemon thread; one transport for each scheme, one lane for each destination.
Crossing into it is one append and a wake when it is idle; results go back to each waiting loop in
bulk. A fork forgets it, an exit drains it within `EXIT_S` and stores the rest; what is emitted after
that, in the last `atexit` callbacks, is delivered in their thread.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence

from aevents import loops, parking, tables
from aevents.arrivals import Arrivals
from aevents.backlog import Load
from aevents.errors import Refused
from aevents.keeper import keeper
from aevents.lane import Lane
from aevents.retry import Later
from aevents.returns import Returns
from aevents.settings import conf
from aevents.shipment import Parcel
from aevents.transports import scheme_of, transport_class
from aevents.transports.base import Destination, Transport

_logger = logging.getLogger("aevents")
_LOOK_EVERY_S = 0.005  # how often a flush looks whether all is done
_GRACE_S = 1.0
_SORTED_AT_ONCE = 256
_ENDED = "the process ended"


class Courier:
    """Delivers parcels on a loop of its own. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._thread = loops.LoopThread("aevents", loops.new_quickest_loop)
        self._thread.on_fork = self._forget
        self._pid_of_finalizer = 0
        self._is_over = False
        self._is_delivering_last = False
        self.renew_lock()
        self._reset()

    def renew_lock(self) -> None:
        """Make the lock anew: in the child of a fork, whose parent may have held it."""
        # Nothing is put where nobody will look any more: a loop and its arrivals begin and end as one.
        # A signal handler may emit in the midst of an emit: reentrant.
        self._lock = threading.RLock()

    def _reset(self) -> None:
        self._arrived = Arrivals()
        self._lanes: dict[Destination, Lane] = {}
        self._transports: dict[str, Transport] = {}
        self._load = Load()

    def _forget(self) -> None:
        loops.keep_for_ever((self._arrived, self._lanes, self._transports))
        self.renew_lock()
        self._reset()
        Returns.forget()

    @property
    def owed(self) -> int:
        """How many deliveries wait or are under way."""
        return len(self._arrived) + sum(lane.owed for lane in list(self._lanes.values()))

    @property
    def is_idle(self) -> bool:
        """Whether no delivery is under way: then nothing is gained by crossing together."""
        return self._load.deliveries == 0

    def ship(self, parcels: Sequence[Parcel], caller: asyncio.AbstractEventLoop | None = None) -> None:
        """Take parcels and return at once; what cannot be taken is settled as failed.

        `caller`: the running loop of the caller, if there is one. All that its tasks ship in one turn
        then crosses together: each wake costs the threads a fight for the interpreter's lock.
        """
        full = self._arrived.why_full(parcels, len(self._lanes), self._load.waiting_bytes)
        if full is not None:
            self._fail(parcels, full)
            return
        if self._is_over:
            self._ship_last(parcels)
            return
        try:
            with self._lock:
                loop = self._thread.start()
                arrived = self._arrived
                arrived.put(parcels)
        except RuntimeError as error:
            if loops.why_no_threads() or threading.main_thread().is_alive():
                self._fail(parcels, f"the courier does not run: {error}")
            else:  # Python 3.12 starts no thread any more once atexit callbacks run
                self._ship_last(parcels)
            return
        if self._pid_of_finalizer != os.getpid():
            self._pid_of_finalizer = os.getpid()
            loops.call_where_multiprocessing_ends(self.end)
        if caller is None or self.is_idle:
            self._wake(loop, arrived)
        elif caller not in arrived.wakers:
            arrived.wakers.add(caller)
            caller.call_soon(self._wake, loop, arrived, caller)

    def is_overdue(self, destination: Destination) -> bool:
        """Tell whether the destination owes an older answer for too long already."""
        lane = self._lanes.get(destination)
        return lane is not None and lane.is_overdue()

    def room(self, destination: Destination) -> int:
        """Return how many stored deliveries the destination's lane has a use for now."""
        lane = self._lanes.get(destination)
        return conf().LIMITS.IN_FLIGHT if lane is None else lane.room()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is under way, and what is owed still is stored, at most `timeout_s`.

        Tells whether that was reached.
        """
        ends = time.monotonic() + timeout_s
        is_drained = self._drain(timeout_s) == 0
        return keeper.flush(max(0.0, ends - time.monotonic())) and is_drained

    def close(self, timeout_s: float) -> int:
        """Drain, close every connection and end the thread; return how many deliveries were given up."""
        if not self._thread.is_running:
            return 0
        self._drain(timeout_s)
        arrived = self._arrived
        closing = self._thread.submit(self._close_all(arrived))
        with contextlib.suppress(TimeoutError):
            closing.result(1.0)
        arrived.is_closed = True  # if the loop had no time to
        self._thread.stop(1.0)
        return self._begin_anew()

    def _begin_anew(self) -> int:
        """Forget the loop that has ended, failing what another thread shipped until now.

        Returns how many deliveries were given up, those included.
        """
        with self._lock:
            arrived, load = self._arrived, self._load
            # What a loop holds that is blocked and did not end in time: nobody will settle that.
            blocked = sum(lane.owed for lane in list(self._lanes.values()))
            self._is_delivering_last = False
            self._reset()
        return load.given_up + blocked + self._fail(arrived.take_all(), _ENDED)

    def end(self, after_s: float = 0.0) -> None:
        """Close within `EXIT_S`, of which `after_s` are over; log how many deliveries were given up."""
        if not (self._thread.is_running or keeper.is_running):
            return  # nothing was emitted, and perhaps there are no settings
        ends = time.monotonic() + conf().LIMITS.EXIT_S - after_s
        given_up = self.close(max(0.0, ends - time.monotonic()))
        given_up += keeper.end(max(_GRACE_S, ends - time.monotonic()))
        _tell_of(given_up)

    def end_for_good(self) -> None:
        """As `end`; what is shipped later is taken only from the thread that runs `atexit` callbacks."""
        self.end(after_s=loops.exit_lasts_s())
        self._is_over = True
        keeper.end(0.0, for_good=True)

    def _wake(
        self,
        loop: asyncio.AbstractEventLoop,
        arrived: Arrivals,
        caller: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if caller is not None:
            arrived.wakers.discard(caller)
        if arrived.is_awake:
            return
        try:
            arrived.is_awake = True
            loop.call_soon_threadsafe(self._sort, arrived)
        except RuntimeError:  # the loop was stopped a moment ago
            arrived.is_awake = False
            self._fail(arrived.take_all(), _ENDED)
        except BaseException:  # what a signal handler raises: nobody was woken, perhaps
            arrived.is_awake = False
            raise

    def _sort(self, arrived: Arrivals) -> None:
        # Cleared before looking: who appends from here on sees it and wakes us again.
        arrived.is_awake = False
        load = self._load
        for _ in range(_SORTED_AT_ONCE):
            parcel = arrived.take()
            if parcel is None:
                return
            if arrived.is_closed:
                load.given_up += self._fail([parcel], _ENDED)
                continue
            lane = self._lanes.get(parcel.destination)
            if lane is None:
                try:
                    lane = self._lane(parcel.destination)
                except Exception as error:
                    if not isinstance(error, Refused):
                        _logger.exception("No lane to %s", parcel.destination.name)
                    self._fail([parcel], str(error), parking.UNTIL_A_DEPLOY)
                    continue
            lane.put(parcel)
        # Threads may bring more as fast as this one sorts: the rest waits until the lanes had their turn.
        arrived.is_awake = True
        asyncio.get_running_loop().call_soon(self._sort, arrived)

    def _lane(self, destination: Destination) -> Lane:
        if destination.mistake:
            raise Refused(destination.mistake)
        scheme = scheme_of(destination.url)
        transport = self._transports.get(scheme)
        if transport is None:
            options = {k: v for k, v in conf().TRANSPORTS.get(scheme, {}).items() if k != "BACKEND"}
            transport = self._transports[scheme] = transport_class(scheme)(**options)
        lane = self._lanes[destination] = Lane(destination, transport, self._load)
        return lane

    def _fail(self, parcels: Iterable[Parcel], error: str, later: Later = parking.AT_ONCE) -> int:
        """Park what gets no lane; return how many are lost for want of a store."""
        parcels = list(parcels)
        for parcel in parcels:
            parking.park(parcel, error, later)
        return len(parcels) if tables.why_not() is not None else 0

    def _drain(self, timeout_s: float) -> int:
        """Wait until nothing is owed, at most `timeout_s`; return how much is owed still."""
        if not self._thread.is_running:
            return 0
        if self._thread.is_current:  # a signal receiver would wait for itself
            return self.owed
        try:
            draining = self._thread.submit(self._drained(self._arrived, timeout_s))
            return draining.result(timeout_s + _GRACE_S)
        except TimeoutError:  # a signal receiver blocks the loop
            return max(1, self.owed)

    async def _drained(self, arrived: Arrivals, timeout_s: float) -> int:
        ends = asyncio.get_running_loop().time() + timeout_s
        # Counted on the loop, where no parcel is halfway from one queue to the next.
        while True:
            self._sort(arrived)  # a caller's loop that has stopped wakes nobody
            if not self.owed or asyncio.get_running_loop().time() >= ends:
                return self.owed
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _close_all(self, arrived: Arrivals) -> None:
        arrived.is_closed = True
        if arrived is not self._arrived:
            return  # the loop was blocked for so long that nobody waits for its end, and all is new
        for lane in self._lanes.values():
            await lane.close()
        for transport in self._transports.values():
            try:
                await transport.close()
            except Exception:
                _logger.exception("A transport did not close")

    def _ship_last(self, parcels: Sequence[Parcel]) -> None:
        """Deliver here and now: nobody will wait for the courier any more, nor may threads be started."""
        with self._lock:
            if self._is_delivering_last:  # and what is delivered has a handler that emits
                self._arrived.put(parcels)
                return
        if threading.current_thread() is not threading.main_thread() or loops.is_in_a_loop():
            self._fail(parcels, _ENDED)
            return
        self._arrived.put(parcels)
        self._is_delivering_last = True
        try:
            loops.run_here(self._deliver_last(conf().LIMITS.EXIT_S))
        finally:
            self._is_delivering_last = False

    async def _deliver_last(self, timeout_s: float) -> None:
        await self._drained(self._arrived, timeout_s)
        await self._close_all(self._arrived)
        _tell_of(self._begin_anew())


def _tell_of(given_up: int) -> None:
    if given_up:
        _logger.error("The process ended with %d deliveries undone", given_up)


courier = Courier()
# Now and not at the first emit: what later callbacks emit is drained too, as the last one is called first.
atexit.register(courier.end_for_good)
os.register_at_fork(after_in_child=courier.renew_lock)
