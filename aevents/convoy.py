"""What travels together: a lane's backlog in, the parcels of the next request out.

Never a timer: what waits when a request may leave goes with it. How many is learnt from how requests
fare, so that a slow receiver is not drowned, and one event that breaks it takes few others along.
"""

from __future__ import annotations

from aevents.backlog import Backlog
from aevents.batch import BYTES_BESIDE_THE_PAYLOAD
from aevents.settings import conf
from aevents.shipment import Parcel
from aevents.transports.base import Destination, Transport

#: Requests at a time where batches go: one is under way while the next one fills.
AT_ONCE = 2


class Convoy:
    """The size of the next request to one destination."""

    def __init__(self, destination: Destination, transport: Transport) -> None:
        self._destination = destination
        self._transport = transport
        self._limit = float(conf().LIMITS.BATCH)  # halved at a failure, one more at a success

    @property
    def is_offered(self) -> bool:
        """Whether the destination takes batches at this moment."""
        return self._transport.takes_batches(self._destination)

    @property
    def limit(self) -> int:
        """How many events the next request may hold."""
        return int(self._limit) if self.is_offered else 1

    def take(self, waiting: Backlog, *, is_probe: bool) -> list[Parcel]:
        """Take what goes next, in order: one parcel, or as many as fit into a batch."""
        parcels = [waiting.take()]
        limit = 1 if is_probe else self.limit
        if limit <= 1:
            return parcels
        room = conf().LIMITS.BODY_BYTES / 2 - _size(parcels[0])
        while len(parcels) < limit and (following := waiting.oldest) is not None:
            room -= _size(following)
            if room < 0:
                break
            parcels.append(waiting.take())
        return parcels

    def grow(self) -> None:
        """Note a request that was answered."""
        self._limit = min(float(conf().LIMITS.BATCH), self._limit + 1)

    def shrink(self) -> None:
        """Note one that was not."""
        self._limit = max(1.0, self._limit / 2)


def _size(parcel: Parcel) -> int:
    return len(parcel.event.data) + BYTES_BESIDE_THE_PAYLOAD
