"""What is under way: the parcels of a call and the slip on which their results are noted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aevents.emission import Result
from aevents.event import Event, Message
from aevents.transports.base import Destination


class Shipment:
    """The results of one call's parcels. The courier's thread settles, any thread may look."""

    def __init__(self, size: int, on_done: Callable[[], None] | None = None) -> None:
        self.results: list[Result | None] = [None] * size
        self._left = size
        self._on_done = on_done
        self._unawaited: frozenset[int] = frozenset()

    def wait_only_for_others_than(self, indexes: frozenset[int]) -> bool:
        """Let the caller's wait end without these; tell whether any is left. Before anything is settled."""
        self._unawaited = indexes
        self._left -= len(indexes)
        return self._left > 0

    def settle(self, index: int, result: Result) -> None:
        """Note a parcel's end, once; after the last that is awaited the waiting caller is told."""
        self.results[index] = result
        if index in self._unawaited:
            return
        self._left -= 1
        if self._left == 0 and self._on_done is not None:
            self._on_done()


# What an event of a few bytes holds: its headers, strings and results.
_BYTES_BESIDE_THE_PAYLOAD = 1500


@dataclass(slots=True, eq=False)
class Parcel:
    """One event on its way to one destination."""

    event: Event
    message: Message
    destination: Destination
    shipment: Shipment
    index: int
    held_bytes: int  # about how much memory it holds; asked for at each queue
    began: float = field(default_factory=time.monotonic)
    attempts: int = 0
    gives_up_at: float = 0.0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    def result(self, outcome: str, error: str | None = None) -> Result:
        """Return the result of now."""
        return Result(self.destination.name, outcome, self.attempts, error, self.elapsed_s)  # type: ignore[arg-type]


def pack(
    packed: Sequence[tuple[Event, Message, Sequence[Destination]]],
    on_done: Callable[[], None] | None,
) -> tuple[Shipment, list[Parcel]]:
    """Return a shipment and its parcels, one for each event and destination, in order."""
    shipment = Shipment(sum(len(destinations) for _, _, destinations in packed), on_done)
    parcels: list[Parcel] = []
    for event, message, destinations in packed:
        held_bytes = len(message.body) + len(event.data) + _BYTES_BESIDE_THE_PAYLOAD
        for destination in destinations:
            parcels.append(Parcel(event, message, destination, shipment, len(parcels), held_bytes))
    return shipment, parcels
