"""The process's one event loop for deliveries: parcels from any thread in, results out.

One lazily started daemon thread; one transport for each scheme, one lane for each destination.
Crossing into it is one append and a wake when it is idle; results go back to each waiting loop in
bulk. A fork forgets it, an exit drains it within `EXIT_S`; what is emitted after that, in the last
`atexit` callbacks, is delivered in their thread.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence

from aevents import loops, signals
from aevents.errors import Refused
from aevents.lane import Lane, Load
from aevents.returns import Returns
from aevents.settings import conf
from aevents.shipment import Parcel
from aevents.transports import scheme_of, transport_class
from aevents.transports.base import Destination, Transport

_logger = logging.getLogger("aevents")
_LOOK_EVERY_S = 0.005  # how often a flush looks whether all is done
_GRACE_S = 1.0
_SORTED_AT_ONCE = 100
_ENDED = "the process ended"


class Courier:
    """Delivers parcels on a loop of its own. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._thread = loops.LoopThread("aevents")
        self._thread.on_fork = self._forget
        self._pid_of_finalizer = 0
        self._is_over = False
        self._is_delivering_last = False
        self._reset()

    def _reset(self) -> None:
        self._arrived: deque[Parcel] = deque()
        self._is_awake = False
        self._is_closing = False
        self._wakers: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._lanes: dict[Destination, Lane] = {}
        self._transports: dict[str, Transport] = {}
        self._load = Load()

    def _forget(self) -> None:
        loops.keep_for_ever((self._arrived, self._lanes, self._transports))
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
        if not self._has_room_for(parcels):
            self._fail(parcels, f"{len(self._arrived)} events wait for the courier already")
            return
        if self._is_over:
            self._ship_last(parcels)
            return
        try:
            loop = self._thread.start()
        except RuntimeError as error:
            if loops.why_no_threads() or threading.main_thread().is_alive():
                self._fail(parcels, f"the courier does not run: {error}")
            else:  # Python 3.12 starts no thread any more once atexit callbacks run
                self._ship_last(parcels)
            return
        if self._pid_of_finalizer != os.getpid():
            self._pid_of_finalizer = os.getpid()
            loops.call_where_multiprocessing_ends(self.end)
        self._arrived.extend(parcels)
        if caller is None or self.is_idle:
            self._wake(loop)
        elif caller not in self._wakers:
            self._wakers.add(caller)
            caller.call_soon(self._wake, loop, caller)

    def _has_room_for(self, parcels: Sequence[Parcel]) -> bool:
        """Tell whether less has arrived than the lanes may hold, those that are still to be made included."""
        waiting = conf().LIMITS.WAITING
        if len(self._arrived) < waiting:
            return True
        lanes = max(len(self._lanes), len({parcel.destination for parcel in parcels}))
        return len(self._arrived) < waiting * lanes

    def is_overdue(self, destination: Destination) -> bool:
        """Tell whether the destination owes an older answer for too long already."""
        lane = self._lanes.get(destination)
        return lane is not None and lane.is_overdue()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is owed, at most `timeout_s`; tell whether that was reached."""
        return self._drain(timeout_s) == 0

    def close(self, timeout_s: float) -> int:
        """Drain, close every connection and end the thread; return how many deliveries were given up."""
        if not self._thread.is_running:
            return 0
        given_up = self._drain(timeout_s)
        closing = self._thread.submit(self._close_all())
        with contextlib.suppress(TimeoutError):
            closing.result(1.0)
        self._thread.stop(1.0)
        arrived = self._arrived
        self._reset()
        late = list(arrived)  # looked at last: another thread may have shipped until now
        self._fail(late, _ENDED)
        return given_up + len(late)

    def end(self, after_s: float = 0.0) -> None:
        """Close within `EXIT_S`, of which `after_s` are over; log how many deliveries were given up."""
        if self._thread.is_running:  # else nothing was emitted, and perhaps there are no settings
            _tell_of(self.close(max(0.0, conf().LIMITS.EXIT_S - after_s)))

    def end_for_good(self) -> None:
        """As `end`; what is shipped later is taken only from the thread that runs `atexit` callbacks."""
        self.end(after_s=loops.exit_lasts_s())
        self._is_over = True

    def _wake(self, loop: asyncio.AbstractEventLoop, caller: asyncio.AbstractEventLoop | None = None) -> None:
        if caller is not None:
            self._wakers.discard(caller)
        if self._is_awake:
            return
        try:
            self._is_awake = True
            loop.call_soon_threadsafe(self._sort)
        except RuntimeError:  # the loop was stopped a moment ago
            self._is_awake = False
            left, self._arrived = list(self._arrived), deque()
            self._fail(left, _ENDED)
        except BaseException:  # what a signal handler raises: nobody was woken, perhaps
            self._is_awake = False
            raise

    def _sort(self) -> None:
        # Cleared before looking: who appends from here on sees it and wakes us again.
        self._is_awake = False
        for _ in range(_SORTED_AT_ONCE):
            if not self._arrived:
                return
            parcel = self._arrived.popleft()
            if self._is_closing:
                self._fail([parcel], _ENDED)
                continue
            lane = self._lanes.get(parcel.destination)
            if lane is None:
                try:
                    lane = self._lane(parcel.destination)
                except Exception as error:
                    if not isinstance(error, Refused):
                        _logger.exception("No lane to %s", parcel.destination.name)
                    self._fail([parcel], str(error))
                    continue
            lane.put(parcel)
        # Threads may bring more as fast as this one sorts: the rest waits until the lanes had their turn.
        self._is_awake = True
        asyncio.get_running_loop().call_soon(self._sort)

    def _lane(self, destination: Destination) -> Lane:
        if not destination.url:
            raise Refused(f"{destination.name!r} is not in AEVENTS['SERVICES']")
        scheme = scheme_of(destination.url)
        transport = self._transports.get(scheme)
        if transport is None:
            options = {k: v for k, v in conf().TRANSPORTS.get(scheme, {}).items() if k != "BACKEND"}
            transport = self._transports[scheme] = transport_class(scheme)(**options)
        lane = self._lanes[destination] = Lane(destination, transport, self._load)
        return lane

    def _fail(self, parcels: Sequence[Parcel], error: str) -> None:
        for parcel in parcels:
            signals.announce(
                signals.delivery_failed,
                event=parcel.event,
                service=parcel.destination.name,
                attempts=parcel.attempts,
                elapsed_s=parcel.elapsed_s,
                error=error,
                outcome="failed",
            )
            parcel.shipment.settle(parcel.index, parcel.result("failed", error))

    def _drain(self, timeout_s: float) -> int:
        """Wait until nothing is owed, at most `timeout_s`; return how much is owed still."""
        if not self._thread.is_running:
            return 0
        if self._thread.is_current:  # a signal receiver would wait for itself
            return self.owed
        try:
            return self._thread.submit(self._drained(timeout_s)).result(timeout_s + _GRACE_S)
        except TimeoutError:  # a signal receiver blocks the loop
            return max(1, self.owed)

    async def _drained(self, timeout_s: float) -> int:
        ends = asyncio.get_running_loop().time() + timeout_s
        # Counted on the loop, where no parcel is halfway from one queue to the next.
        while True:
            self._sort()  # a caller's loop that has stopped wakes nobody
            if not self.owed or asyncio.get_running_loop().time() >= ends:
                return self.owed
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _close_all(self) -> None:
        self._is_closing = True
        for lane in self._lanes.values():
            await lane.close()
        for transport in self._transports.values():
            try:
                await transport.close()
            except Exception:
                _logger.exception("A transport did not close")

    def _ship_last(self, parcels: Sequence[Parcel]) -> None:
        """Deliver here and now: nobody will wait for the courier any more, nor may threads be started."""
        if self._is_delivering_last:  # and what is delivered has a handler that emits
            self._arrived.extend(parcels)
            return
        if threading.current_thread() is not threading.main_thread() or loops.is_in_a_loop():
            self._fail(parcels, _ENDED)
            return
        self._arrived.extend(parcels)
        self._is_delivering_last = True
        try:
            loops.run_here(self._deliver_last(conf().LIMITS.EXIT_S))
        finally:
            self._is_delivering_last = False

    async def _deliver_last(self, timeout_s: float) -> None:
        given_up = await self._drained(timeout_s)
        await self._close_all()
        self._reset()
        _tell_of(given_up)


def _tell_of(given_up: int) -> None:
    if given_up:
        _logger.error("The process ended with %d deliveries undone", given_up)


courier = Courier()
# Now and not at the first emit: what later callbacks emit is drained too, as the last one is called first.
atexit.register(courier.end_for_good)
