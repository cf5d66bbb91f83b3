"""The way into the courier's thread: parcels from any thread in, taken one by one on its loop.

One for each life of the loop, with all that tells whether it will look: whoever holds the one of an
ended loop wakes nobody in vain, and changes nothing for the next.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Iterator, Sequence

from aevents.settings import conf
from aevents.shipment import Parcel


class Arrivals:
    """Parcels that have no lane yet. One thread puts at a time, and one takes; they need not agree."""

    def __init__(self) -> None:
        self._parcels: deque[Parcel] = deque()
        self._bytes_put = 0  # two counts, each with one thread that changes it
        self._bytes_taken = 0
        self.is_awake = False  # the loop is about to look
        self.is_closed = False  # and will only give up what it finds
        self.wakers: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()

    def __len__(self) -> int:
        return len(self._parcels)

    def put(self, parcels: Sequence[Parcel]) -> None:
        """Add parcels at the end, all of them."""
        for parcel in parcels:
            self._bytes_put += parcel.held_bytes
        self._parcels.extend(parcels)

    def take(self) -> Parcel | None:
        """Return the oldest parcel, or None."""
        try:
            parcel = self._parcels.popleft()
        except IndexError:
            return None
        self._bytes_taken += parcel.held_bytes
        return parcel

    def take_all(self) -> Iterator[Parcel]:
        """Take until nothing is left."""
        while (parcel := self.take()) is not None:
            yield parcel

    def why_full(self, parcels: Sequence[Parcel], lanes: int, waiting_bytes: int) -> str | None:
        """Say why there is no room for `parcels`, or None where there is.

        `lanes` have `waiting_bytes` waiting in them already. One call may be larger than what is left.
        """
        limits, arrived = conf().LIMITS, len(self._parcels)
        # No more than the lanes may hold, those that are still to be made included.
        if arrived >= limits.WAITING and arrived >= limits.WAITING * max(
            lanes, len({parcel.destination for parcel in parcels})
        ):
            return f"{arrived} events wait for the courier already"
        held = self._bytes_put - self._bytes_taken
        # Whatever services that hang have hoarded, a quarter is left for what has yet to find its lane.
        if held >= limits.WAITING_BYTES / 4 and held + waiting_bytes >= limits.WAITING_BYTES:
            in_all = held + waiting_bytes
            return f"{in_all} bytes are waiting in this process already, {held} of them to be sorted"
        return None
