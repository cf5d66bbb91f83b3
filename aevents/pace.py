"""How a destination fares: its answers and failures in, how many requests it is given out.

A breaker, which says whether it is bothered at all, and the places for requests, halved at a timeout.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable
from typing import TypeVar

from aevents import signals
from aevents.breaker import Breaker
from aevents.errors import DeliveryError, Unavailable
from aevents.settings import conf

T = TypeVar("T")
_logger = logging.getLogger("aevents")


class Pace:
    """One destination's. Lives on the courier's loop; any thread may look."""

    def __init__(self, service: str) -> None:
        self._service = service
        self.breaker = Breaker(time.monotonic)
        self.slots = float(conf().LIMITS.IN_FLIGHT)  # halved at a timeout, one more at a success
        self.answered_at = time.monotonic()

    async def noted(self, sending: Awaitable[T]) -> T:
        """Await a request. The breaker learns of it; unknown errors count as `Unavailable`."""
        began = time.monotonic()
        try:
            result = await sending
        except Unavailable as error:
            if error.answered or error.slowly:
                self._alive()
            else:
                self._failed(began, error)
            raise
        except Exception as error:
            if isinstance(error, DeliveryError):
                self._alive()
                raise
            _logger.exception("A try to deliver to %s failed in an unknown way", self._service)
            unknown = Unavailable(f"{type(error).__name__}: {error}")
            self._failed(began, unknown)
            raise unknown from error
        except BaseException:
            self.breaker.gave_up(began)
            raise
        self._alive()
        self._grow()
        return result

    def _alive(self) -> None:
        self.answered_at = time.monotonic()
        if self.breaker.succeeded():
            signals.announce(signals.destination_up, service=self._service)

    def _grow(self) -> None:
        if self.slots < conf().LIMITS.IN_FLIGHT:
            self.slots += 1

    def _failed(self, began: float, error: Unavailable) -> None:
        if error.timed_out or error.retry_after_s is not None:
            self.slots = max(1.0, self.slots / 2)
        if self.breaker.failed(began):
            self.slots = 1.0  # and when it is back, not all that is owed to it at once
            signals.announce(
                signals.destination_down,
                service=self._service,
                failures=self.breaker.failures,
                pause_s=self.breaker.pause_s,
                error=str(error),
            )
