"""One destination's queue in this process: parcels in, tries, results out.

Bounded in flight and in waiting, with a breaker of its own, so that no destination ever holds up
another. Lives on the courier's loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextvars import Context

from aevents import retry, signals
from aevents.answer import Receipt
from aevents.breaker import Breaker
from aevents.emission import Result
from aevents.errors import DeliveryError, Refused, Unavailable
from aevents.settings import conf
from aevents.shipment import Parcel
from aevents.transports.base import Destination, Transport

_logger = logging.getLogger("aevents")


def _is_closing() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Load:
    """What all lanes of the process bear: deliveries not ended, and the bytes of those that wait.

    `given_up`: how many ended because the process does.
    """

    def __init__(self) -> None:
        self.deliveries = 0
        self.waiting_bytes = 0
        self.given_up = 0


class Lane:
    """Delivers what is put in, a bounded number at a time, in the order it came."""

    def __init__(self, destination: Destination, transport: Transport, load: Load) -> None:
        self._destination = destination
        self._transport = transport
        self._load = load
        self._waiting: deque[Parcel] = deque()
        self._waiting_bytes = 0
        self._in_flight: dict[Parcel, float] = {}
        self._runners = 0
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly
        self._breaker = Breaker(time.monotonic)
        self._answered_at = time.monotonic()
        self._tried = retry.within_the_call(self._attempt, self._breaker.admit_retry, self._on_retry)

    @property
    def owed(self) -> int:
        """How many parcels wait or are under way."""
        return len(self._waiting) + len(self._in_flight)

    def put(self, parcel: Parcel) -> None:
        """Take a parcel; what is over the bounds is told so at once."""
        limits = conf().LIMITS
        size = parcel.held_bytes
        self._load.deliveries += 1
        if len(self._waiting) >= limits.WAITING:
            self._give_up(parcel, f"{len(self._waiting)} events are waiting for it already")
            return
        # No more than is still free: so whoever hoards leaves room to the others, however many hoard.
        if self._waiting and self._waiting_bytes + size > limits.WAITING_BYTES - self._load.waiting_bytes:
            self._give_up(
                parcel,
                f"{self._load.waiting_bytes} bytes are waiting in this process already,"
                f" {self._waiting_bytes} of them for it",
            )
            return
        self._waiting.append(parcel)
        self._count_waiting(size)
        if self._runners < limits.IN_FLIGHT:
            self._runners += 1
            # Not in the caller's context: one runner carries the events of many callers, and what is
            # dispatched in this process would inherit a handler's scope, or `suppressed`.
            task = asyncio.get_running_loop().create_task(self._run(), context=Context())
            self._tasks.add(task)

    def is_overdue(self) -> bool:
        """Tell whether it owes an answer for so long that a call need not wait for the next one."""
        if not self.owed:  # the rule; the rest costs more than all else that a call asks of the courier
            return False
        call_s = conf().LIMITS.CALL_S
        # Each a copy in one step: another thread asks while this one changes it.
        oldest = next(iter(list(self._in_flight.values())), None)
        now = time.monotonic()
        if oldest is not None and now - max(oldest, self._answered_at) >= call_s:
            return True
        try:
            next_one = self._waiting[0]
        except IndexError:
            return False
        return now - next_one.began >= call_s  # it answers, but the queue is longer than a call

    def _count_waiting(self, size: int) -> None:
        self._waiting_bytes += size
        self._load.waiting_bytes += size

    async def close(self) -> None:
        """Give up what waits and what is under way."""
        while self._waiting:
            parcel = self._waiting.popleft()
            self._count_waiting(-parcel.held_bytes)
            self._end(parcel)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while self._waiting:
                parcel = self._waiting.popleft()
                self._count_waiting(-parcel.held_bytes)
                self._in_flight[parcel] = time.monotonic()
                try:
                    await self._deliver(parcel)
                finally:
                    del self._in_flight[parcel]
        finally:
            # In the same step as the look at the queue: a parcel put later finds the place free.
            self._runners -= 1
            task = asyncio.current_task()
            if task is not None:  # not as its callback, which would cost the loop one more turn
                self._tasks.discard(task)

    async def _deliver(self, parcel: Parcel) -> None:
        if not self._breaker.admit():
            self._give_up(
                parcel,
                f"it is down, {self._breaker.failures} failures in a row;"
                f" next try in {self._breaker.pause_s:.1f} s",
            )
            await asyncio.sleep(0)  # thousands may wait, and the other lanes want their turn
            return
        parcel.gives_up_at = time.monotonic() + conf().LIMITS.CALL_S
        try:
            receipt = await self._tried(parcel)
        except DeliveryError as error:
            self._give_up(parcel, str(error))
        except asyncio.CancelledError:
            if _is_closing():
                self._end(parcel)
                raise
            self._give_up(parcel, "the try was cancelled")  # by whoever handles it, not by us
        except Exception as error:
            _logger.exception("A delivery to %s failed in an unknown way", self._destination.name)
            self._give_up(parcel, f"{type(error).__name__}: {error}")
        else:
            if signals.is_heard(signals.event_delivered):
                signals.announce(
                    signals.event_delivered,
                    event=parcel.event,
                    service=self._destination.name,
                    attempts=parcel.attempts,
                    elapsed_s=parcel.elapsed_s,
                    verdict=receipt.verdict,
                )
            self._settle(parcel, parcel.result("delivered"))

    async def _attempt(self, parcel: Parcel) -> Receipt:
        """Try once. The breaker learns of it; unknown errors count as `Unavailable`."""
        began = time.monotonic()
        try:
            receipt = await self._transport.send(self._destination, parcel.message)
        except Unavailable as error:
            if error.answered or error.slowly:
                self._alive()
            else:
                self._failed(began, error)
            raise
        except Exception as error:
            if isinstance(error, Refused):
                self._alive()
                raise
            _logger.exception("A try to deliver to %s failed in an unknown way", self._destination.name)
            unknown = Unavailable(f"{type(error).__name__}: {error}")
            self._failed(began, unknown)
            raise unknown from error
        except BaseException:
            self._breaker.gave_up(began)
            raise
        self._alive()
        return receipt

    def _on_retry(self, parcel: Parcel, error: DeliveryError, wait_s: float) -> None:
        self._tell(parcel, str(error), f"again in {wait_s:.2f} s")

    def _alive(self) -> None:
        self._answered_at = time.monotonic()
        if self._breaker.succeeded():
            signals.announce(signals.destination_up, service=self._destination.name)

    def _failed(self, began: float, error: Unavailable) -> None:
        if self._breaker.failed(began):
            signals.announce(
                signals.destination_down,
                service=self._destination.name,
                failures=self._breaker.failures,
                pause_s=self._breaker.pause_s,
                error=str(error),
            )

    def _give_up(self, parcel: Parcel, error: str) -> None:
        self._tell(parcel, error, "failed")
        self._settle(parcel, parcel.result("failed", error))

    def _end(self, parcel: Parcel) -> None:
        self._load.given_up += 1
        self._give_up(parcel, "the process ended")

    def _settle(self, parcel: Parcel, result: Result) -> None:
        self._load.deliveries -= 1
        parcel.shipment.settle(parcel.index, result)

    def _tell(self, parcel: Parcel, error: str, outcome: str) -> None:
        signals.announce(
            signals.delivery_failed,
            event=parcel.event,
            service=self._destination.name,
            attempts=parcel.attempts,
            elapsed_s=parcel.elapsed_s,
            error=error,
            outcome=outcome,
        )
