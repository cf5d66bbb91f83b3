"""How a parcel ends in its lane: a receipt or an error in, its result noted, on its slip and in the store."""

from __future__ import annotations

from collections.abc import Sequence

from aevents import outcomes, parking, retry, signals, tables
from aevents.answer import Receipt
from aevents.backlog import Load
from aevents.retry import Later
from aevents.shipment import Parcel
from aevents.tables import Lease


class Endings:
    """The ends of one destination's parcels. Each is counted off `load`, and has exactly one."""

    def __init__(self, service: str, load: Load) -> None:
        self._service = service
        self._load = load

    def delivered(self, parcels: Sequence[Parcel], receipts: Sequence[Receipt]) -> None:
        """Note that the destination owns these now."""
        if signals.is_heard(signals.event_delivered):
            for parcel, receipt in zip(parcels, receipts, strict=True):
                signals.announce(
                    signals.event_delivered,
                    event=parcel.event,
                    service=self._service,
                    attempts=parcel.attempts,
                    elapsed_s=parcel.elapsed_s,
                    verdict=receipt.verdict,
                )
        self._load.deliveries -= len(parcels)
        outcomes.succeeded(*[parcel.lease for parcel in parcels if parcel.lease is not None])
        for parcel in parcels:
            if parcel.is_being_stored:
                parcel.ended = lambda lease: outcomes.succeeded(lease) if lease is not None else None
            parcel.settle("delivered")

    def failed(self, parcel: Parcel, text: str, error: BaseException) -> None:
        """Note a failure, the last for now: when it is tried again is the store's affair."""
        self._give_up(parcel, text, retry.later(*parcel.spent, error))

    def parked(self, parcel: Parcel, error: str, in_s: float) -> None:
        """Note that it gets no try now, and so spends no attempt."""
        self._give_up(parcel, error, Later(*parcel.spent, in_s))

    def cut_short(self, parcel: Parcel) -> None:
        """Note that the process ends first; without a store it is lost."""
        if tables.why_not() is not None:
            self._load.given_up += 1
        self.parked(parcel, "the process ended", 0.0)

    def left_to_others(self, parcel: Parcel) -> None:
        """Note that it is stored, and may be anybody's soon."""
        self._load.deliveries -= 1
        parcel.settle("queued")

    def _give_up(self, parcel: Parcel, error: str, later: Later) -> None:
        def note(lease: Lease | None) -> None:
            parcel.lease = lease
            parking.park(parcel, error, later)

        self._load.deliveries -= 1
        if parcel.is_being_stored:
            parcel.ended = note
        else:
            note(parcel.lease)
