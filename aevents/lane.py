"""One destination's queue in this process: parcels in, tries, results out.

What waits while its places are taken goes in the next request, where the destination takes batches.
Bounded in flight and in waiting, with a breaker of its own, so that no destination ever holds up
another; what does not get through is parked. Lives on the courier's loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

from aevents import claims, parking, retry, signals, tables
from aevents.answer import Receipt
from aevents.backlog import Backlog, Load
from aevents.convoy import AT_ONCE, Convoy
from aevents.endings import Endings
from aevents.errors import DeliveryError, NotTogether, Unavailable
from aevents.pace import Pace
from aevents.settings import conf
from aevents.shipment import Parcel
from aevents.tables import OUT
from aevents.transports.base import Destination, Transport

_LOOK_EVERY_S = 0.25  # at what lasts longer than a call
_STORED_AFTER = 0.9  # of a call's time: so the caller is still there to be told
_MARGIN_S = 2.0  # before a lease ends, for what is slow on this machine
_FULL_PAUSE_S = 1.0
_logger = logging.getLogger("aevents")


def _is_closing() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Lane:
    """Delivers what is put in, a bounded number at a time, in the order it came."""

    def __init__(self, destination: Destination, transport: Transport, load: Load) -> None:
        self._destination = destination
        self._transport = transport
        self._load = load
        self._waiting = Backlog(load)
        self._convoy = Convoy(destination, transport)
        self._endings = Endings(destination.name, load)
        self._in_flight: dict[Parcel, float] = {}
        self._runners = 0
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly
        self._watch: asyncio.TimerHandle | None = None
        self._pace = Pace(destination.name)
        self._tried = retry.within_the_call(self._attempt, self._pace.breaker.admit_retry, self._on_retry)

    @property
    def owed(self) -> int:
        """How many parcels wait or are under way."""
        return len(self._waiting) + len(self._in_flight)

    def room(self) -> int:
        """Return how many stored deliveries it has a use for now: one probe while the circuit is open."""
        if self._pace.breaker.is_open:
            return 1 if self._pace.breaker.pause_s <= 0 and not self.owed else 0
        limit = self._convoy.limit
        at_once = (int(self._places) + 1) * limit if limit > 1 else 2 * int(self._pace.slots)
        return max(0, at_once - self.owed)

    def put(self, parcel: Parcel) -> None:
        """Take a parcel; what is over the bounds is parked at once."""
        self._load.deliveries += 1
        reason = self._waiting.why_full(parcel)
        if reason is not None:
            self._endings.parked(parcel, reason, _FULL_PAUSE_S)
            return
        if self._pace.breaker.refuses:
            self._turn_away(parcel)
            return
        if claims.is_paused(OUT, self._destination.name):
            self._endings.parked(parcel, "it is paused", 0.0)
            return
        self._waiting.put(parcel)
        if self._runners < self._places:
            self._run_another()
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def is_overdue(self) -> bool:
        """Tell whether it owes an answer for so long that a call need not wait for the next one."""
        if not self.owed:  # the rule; the rest costs more than all else that a call asks of the courier
            return False
        call_s = conf().LIMITS.CALL_S
        try:
            oldest = next(iter(self._in_flight.values()), None)
        except RuntimeError:  # changed meanwhile, as another thread asks: so something moves
            return False
        now = time.monotonic()
        if oldest is not None and now - max(oldest, self._pace.answered_at) >= call_s:
            return True
        next_one = self._waiting.oldest  # it may answer, and the queue yet be longer than a call
        return next_one is not None and now - next_one.began >= call_s

    async def close(self) -> None:
        """Park what waits and what is under way; without a store it is given up."""
        if self._watch is not None:
            self._watch.cancel()
        while self._waiting:
            self._endings.cut_short(self._waiting.take())
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for parcel in list(self._in_flight):  # whose task had no time to begin
            self._endings.cut_short(parcel)

    # What runs

    @property
    def _places(self) -> float:
        """How many requests may be under way: where batches go, what comes meanwhile is for the next."""
        return min(self._pace.slots, AT_ONCE) if self._convoy.limit > 1 else self._pace.slots

    def _run_another(self) -> None:
        self._runners += 1
        self._start(self._run())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        # Not in the caller's context: one runner carries the events of many callers, and what is
        # dispatched in this process would inherit a handler's scope, or `suppressed`.
        self._tasks.add(asyncio.get_running_loop().create_task(work, context=Context()))

    def _ended(self) -> None:
        task = asyncio.current_task()
        if task is not None:  # not as its callback, which would cost the loop one more turn
            self._tasks.discard(task)

    async def _run(self) -> None:
        try:
            while self._waiting and self._runners <= max(1, self._places):
                parcels = self._convoy.take(self._waiting, is_probe=self._pace.breaker.is_open)
                self._in_flight.update(dict.fromkeys(parcels, time.monotonic()))
                try:
                    await (self._deliver(parcels[0]) if len(parcels) == 1 else self._deliver_all(parcels))
                finally:
                    for parcel in parcels:
                        if parcel.foretold is None:
                            del self._in_flight[parcel]
                if self._waiting and self._runners < self._places:  # batches go no longer
                    self._run_another()
        finally:
            # In the same step as the look at the queue: a parcel put later finds the place free.
            self._runners -= 1
            self._ended()

    async def _deliver(self, parcel: Parcel) -> None:
        if self._is_over(parcel):
            return
        if not self._pace.breaker.admit():
            self._turn_away(parcel)
            await asyncio.sleep(0)  # thousands may wait, and the other lanes want their turn
            return
        parcel.gives_up_at = time.monotonic() + conf().LIMITS.CALL_S
        await self._try(parcel)

    async def _try(self, parcel: Parcel) -> None:
        try:
            if parcel.lease is not None:  # the store's schedule tries again: one layer is enough
                parcel.attempts = parcel.lease.attempts + 1
                receipt = await self._attempt(parcel)
            else:
                receipt = await self._tried(parcel)
        except DeliveryError as error:
            self._endings.failed(parcel, str(error), error)
        except asyncio.CancelledError as error:
            if _is_closing():
                self._endings.cut_short(parcel)
                raise
            self._endings.failed(parcel, "the try was cancelled", error)  # by whoever handles it, not by us
        except Exception as error:
            _logger.exception("A delivery to %s failed in an unknown way", self._destination.name)
            self._endings.failed(parcel, f"{type(error).__name__}: {error}", error)
        else:
            self._endings.delivered([parcel], [receipt])

    async def _deliver_all(self, parcels: list[Parcel]) -> None:
        """Deliver in one request. Who fails in it, and is not stored, goes on alone."""
        parcels = [parcel for parcel in parcels if not self._is_over(parcel)]
        if not parcels:
            return
        now = time.monotonic()
        for parcel in parcels:
            self._pace.breaker.admit()  # it is closed, or they had not been taken together
            parcel.gives_up_at = now + conf().LIMITS.CALL_S
            parcel.attempts = parcel.spent[0] + 1
        outcomes: list[Receipt | DeliveryError]
        try:
            sending = self._transport.send_batch(self._destination, [parcel.event for parcel in parcels])
            outcomes = await self._pace.noted(sending)
            self._convoy.grow()
        except NotTogether:
            for parcel in parcels:
                parcel.attempts = 0
            self._waiting.put_back(parcels)
            return
        except DeliveryError as error:
            if isinstance(error, Unavailable) and not error.slowly:
                self._convoy.shrink()
            outcomes = [error] * len(parcels)
        except asyncio.CancelledError:
            if _is_closing():
                for parcel in parcels:
                    self._endings.cut_short(parcel)
                raise
            outcomes = [Unavailable("the try was cancelled")] * len(parcels)
        self._sort_out(parcels, outcomes)

    def _sort_out(self, parcels: list[Parcel], outcomes: list[Receipt | DeliveryError]) -> None:
        taken: list[Parcel] = []
        receipts: list[Receipt] = []
        for parcel, outcome in zip(parcels, outcomes, strict=True):
            if isinstance(outcome, Receipt):
                taken.append(parcel)
                receipts.append(outcome)
            elif parcel.lease is not None:
                self._endings.failed(parcel, str(outcome), outcome)
            else:
                parcel.attempts, parcel.foretold = 0, outcome
                self._start(self._try_alone(parcel))
        self._endings.delivered(taken, receipts)

    async def _try_alone(self, parcel: Parcel) -> None:
        try:
            await self._try(parcel)
        finally:
            del self._in_flight[parcel]
            self._ended()

    async def _attempt(self, parcel: Parcel) -> Receipt:
        if parcel.foretold is not None:  # its first try was in a batch
            error, parcel.foretold = parcel.foretold, None
            raise error
        return await self._pace.noted(self._transport.send(self._destination, parcel.encoded()))

    def _on_retry(self, parcel: Parcel, error: DeliveryError, wait_s: float) -> None:
        signals.announce(
            signals.delivery_failed,
            event=parcel.event,
            service=self._destination.name,
            attempts=parcel.attempts,
            elapsed_s=parcel.elapsed_s,
            error=str(error),
            outcome=f"again in {wait_s:.2f} s",
        )

    def _turn_away(self, parcel: Parcel) -> None:
        failures, pause_s = self._pace.breaker.failures, self._pace.breaker.pause_s
        why = f"it is down, {failures} failures in a row; next try in {pause_s:.1f} s"
        self._endings.parked(parcel, why, pause_s)

    # What lasts

    def _look(self) -> None:
        """Store what lasts longer than a call, and drop what is stored and soon anybody's."""
        self._watch = None
        if not self.owed:
            return
        self._watch = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)
        if tables.why_not() is not None:
            return
        since = time.monotonic() - conf().LIMITS.CALL_S * _STORED_AFTER
        for parcel in self._in_flight:
            if parcel.lease is None and not parcel.is_being_stored and parcel.began <= since:
                parking.store_under_way(parcel)
        oldest = self._waiting.oldest
        if oldest is None or oldest.began > since:
            return
        for parcel in self._waiting.take_where(
            lambda parcel: self._has_run_out(parcel) if parcel.lease is not None else parcel.began <= since
        ):
            if not self._is_over(parcel):
                self._endings.parked(parcel, f"it was not its turn for {parcel.elapsed_s:.1f} s", 0.0)

    def _has_run_out(self, parcel: Parcel) -> bool:
        return parcel.lease is not None and not parcel.lease.lasts(conf().LIMITS.ATTEMPT_S + _MARGIN_S)

    def _is_over(self, parcel: Parcel) -> bool:
        """Tell whether its lease ends before a try might: then the relay has it, or another's."""
        if not self._has_run_out(parcel):
            return False
        self._endings.left_to_others(parcel)
        return True
