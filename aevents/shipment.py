"""What is under way: the parcels of a call and the slip on which their results are noted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aevents import cloudevents, wire
from aevents.emission import Outcome, Result
from aevents.errors import DeliveryError, Refused
from aevents.event import Event, Message
from aevents.tables import Lease
from aevents.transports.base import Destination


class Shipment:
    """The results of one call's parcels. The courier's thread and the store's settle, any may look."""

    def __init__(self, size: int, on_done: Callable[[], None] | None = None) -> None:
        self.results: list[Result | None] = [None] * size
        self._lock = threading.Lock()
        self._left = size
        self._on_done = on_done
        self._unawaited: frozenset[int] = frozenset()

    def wait_only_for_others_than(self, indexes: frozenset[int]) -> bool:
        """Let the caller's wait end without these; tell whether any is left. Before anything is settled."""
        self._unawaited = indexes
        self._left -= len(indexes)
        return self._left > 0

    def settle(self, index: int, result: Result) -> None:
        """Note a parcel's end, the first one; after the last that is awaited the waiting caller is told."""
        with self._lock:
            if self.results[index] is not None:
                return
            self.results[index] = result
            if index in self._unawaited:
                return
            self._left -= 1
            is_last = self._left == 0
        if is_last and self._on_done is not None:
            self._on_done()


# What an event of a few bytes holds: its headers, strings and results.
_BYTES_BESIDE_THE_PAYLOAD = 1500


@dataclass(slots=True, eq=False)
class Parcel:
    """One event on its way to one destination."""

    event: Event
    destination: Destination
    shipment: Shipment
    index: int
    held_bytes: int  # about how much memory it holds; asked for at each queue
    began: float = field(default_factory=time.monotonic)
    attempts: int = 0
    gives_up_at: float = 0.0
    foretold: DeliveryError | None = None  # how its first try fared, in a batch
    message: Message | None = None  # made when it is needed, which in a batch it is not
    lease: Lease | None = None  # where it is stored, and nobody else may deliver it
    is_being_stored: bool = False  # while it is under way
    ended: Callable[[Lease | None], None] | None = (
        None  # what to note when it is stored, having ended meanwhile
    )

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    @property
    def spent(self) -> tuple[int, int]:
        """How many attempts and refusals the store knows of; the tries of one call count as one there."""
        return (0, 0) if self.lease is None else (self.lease.attempts, self.lease.refusals)

    def encoded(self) -> Message:
        """Return the message for its destination; raises `Refused` where it cannot be written."""
        if self.message is None:
            encode = cloudevents.encode if self.destination.format == cloudevents.FORMAT else wire.encode
            try:
                self.message = encode(self.event)
            except Exception as error:  # at no other try either
                raise Refused(f"{type(error).__name__}: {error}") from error
        return self.message

    def settle(self, outcome: Outcome, error: str | None = None) -> None:
        """Note the result of now, unless there is one."""
        result = Result(self.destination.name, outcome, self.attempts, error, self.elapsed_s)
        self.shipment.settle(self.index, result)


def pack(
    packed: Sequence[tuple[Event, Sequence[Destination]]],
    on_done: Callable[[], None] | None,
) -> tuple[Shipment, list[Parcel]]:
    """Return a shipment and its parcels, one for each event and destination, in order."""
    shipment = Shipment(sum([len(destinations) for _, destinations in packed]), on_done)
    parcels: list[Parcel] = []
    for event, destinations in packed:
        held_bytes = 2 * len(event.data) + _BYTES_BESIDE_THE_PAYLOAD  # a message holds it once more
        for destination in destinations:
            parcels.append(Parcel(event, destination, shipment, len(parcels), held_bytes))
    return shipment, parcels
