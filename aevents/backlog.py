"""What waits for one destination, bounded in number and bytes: parcels in at the end, out at the front."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from aevents.settings import conf
from aevents.shipment import Parcel


class Load:
    """What all lanes of the process bear: deliveries not ended, and the bytes of those that wait.

    `given_up`: how many are lost because the process ended.
    """

    def __init__(self) -> None:
        self.deliveries = 0
        self.waiting_bytes = 0
        self.given_up = 0


class Backlog:
    """A queue. Its bytes count towards those of the whole process."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._parcels: deque[Parcel] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._parcels)

    @property
    def oldest(self) -> Parcel | None:
        """The one whose turn is next, if any waits; another thread may ask."""
        try:
            return self._parcels[0]
        except IndexError:
            return None

    def why_full(self, parcel: Parcel) -> str | None:
        """Say why there is no room for `parcel`, or None where there is."""
        limits = conf().LIMITS
        if len(self._parcels) >= limits.WAITING:
            return f"{len(self._parcels)} events are waiting for it already"
        # No more than is still free: so whoever hoards leaves room to the others, however many hoard.
        free = limits.WAITING_BYTES - self._load.waiting_bytes
        if self._parcels and self._bytes + parcel.held_bytes > free:
            return (
                f"{self._load.waiting_bytes} bytes are waiting in this process already,"
                f" {self._bytes} of them for it"
            )
        return None

    def put(self, parcel: Parcel) -> None:
        """Add one at the end."""
        self._parcels.append(parcel)
        self._count(parcel.held_bytes)

    def take(self) -> Parcel:
        """Return the one whose turn it is."""
        parcel = self._parcels.popleft()
        self._count(-parcel.held_bytes)
        return parcel

    def put_back(self, parcels: Sequence[Parcel]) -> None:
        """Let parcels wait again, before all others."""
        self._parcels.extendleft(reversed(parcels))
        self._count(sum(parcel.held_bytes for parcel in parcels))

    def take_where(self, is_wanted: Callable[[Parcel], bool]) -> Iterator[Parcel]:
        """Take those of which that is true; the others keep their order."""
        parcels, self._parcels = self._parcels, deque()
        for parcel in parcels:
            if is_wanted(parcel):
                self._count(-parcel.held_bytes)
                yield parcel
            else:
                self._parcels.append(parcel)

    def _count(self, size: int) -> None:
        self._bytes += size
        self._load.waiting_bytes += size
