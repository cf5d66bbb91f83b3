"""What a transport promises: it carries messages to the addresses of its schemes.

`contract.py` holds the same promises as tests; every transport runs them, yours too. `memory.py` is
the one to read first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from aevents.answer import Answer, Receipt
from aevents.errors import DeliveryError, Refused
from aevents.event import Event, Message


@dataclass(frozen=True, slots=True)
class Destination:
    """A service or broker by its name, the address it is reached at, and how it wants to be spoken to."""

    name: str
    url: str = field(repr=False)  # it may hold credentials
    keys: tuple[bytes, ...] = field(default=(), repr=False)  # that sign, newest first; none: unsigned
    format: str = ""  # "cloudevents", or ours
    ca: str = ""  # a file of certificates that vouch for it, in place of the system's
    cert: tuple[str, ...] = ()  # the files of our own certificate and, unless it is in the same one, its key
    mistake: str = ""  # why nothing may be sent to it before the settings are mended

    def __hash__(self) -> int:
        return hash(self.name)  # asked for several times for each event; names differ, where URLs may not

    @classmethod
    def unknown(cls, name: str) -> Destination:
        """Return the destination of a name that the settings do not know, or not yet."""
        return cls(name, "", mistake=f"{name!r} is not in AEVENTS['SERVICES'] or ['BROKERS']")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a service wants to be brought, and as whom: its replicas share what comes for one `group`."""

    group: str
    types: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()  # in which `*` stands for any run of characters


@dataclass(frozen=True, slots=True)
class Brought:
    """A message that has come. `is_again`: it may have been brought before, and have ended its process."""

    message: Message
    is_again: bool = False


#: Takes messages that have come, and returns what becomes of each: 2xx is "owned, forget it"; whatever else
#: it is, a broker keeps the message and brings it again. It raises nothing but `CancelledError`.
Take = Callable[[Sequence[Brought]], Awaitable[Sequence[Answer]]]


class Transport(ABC):
    """One instance for each scheme and event loop, made and used on that loop only.

    It is shared by all destinations of its schemes and called for many messages at once.
    """

    #: Can it carry several events at once, to destinations that take them?
    can_send_batches: ClassVar[bool] = False
    #: Can a service be brought what others send (`LISTEN`)? Then it has a `listen`.
    can_listen: ClassVar[bool] = False
    #: Does it bring what has the same key in the order it was sent in?
    keeps_order: ClassVar[bool] = False
    #: Does what was sent outlast its receiver's absence?
    is_persistent: ClassVar[bool] = False
    #: Does it drop a second copy of an event by itself?
    drops_duplicates: ClassVar[bool] = False
    #: Is a service that comes late brought what was sent before?
    can_replay: ClassVar[bool] = False
    #: Do the replicas of a service share, while each service gets all?
    has_groups: ClassVar[bool] = False
    #: Can a service want all types that match a pattern?
    has_wildcards: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        """Take the scheme's entry of `TRANSPORTS` without `BACKEND`. Opens nothing yet."""
        self.options = options

    @classmethod
    def mistake_in(cls, url: str) -> str | None:
        """Say what is wrong with `url` and how to mend it, or None. Opens nothing."""
        return None

    @classmethod
    def is_open_to_others(cls, url: str) -> bool:
        """Tell whether others on the way to `url` may read and change what is sent. Opens nothing."""
        return False

    @abstractmethod
    async def send(self, destination: Destination, message: Message) -> Receipt:
        """Carry `message` once, and return as soon as the destination owns the event.

        Not idempotent: sending twice may deliver twice, the id inside is the same. Raises
        `Unavailable` where trying again may succeed and `Refused` where it never will; no other
        exception leaves it but `CancelledError`. Bounded in time by itself. It never blocks the
        loop, never follows a destination elsewhere, and reads no more of an answer than it needs.
        """

    def takes_batches(self, destination: Destination) -> bool:
        """Tell whether `destination` takes batches at this moment. Asked for each event: it must be quick."""
        return False

    async def send_batch(
        self, destination: Destination, events: Sequence[Event]
    ) -> list[Receipt | DeliveryError]:
        """Carry several events once, in order, and return what the destination says of each.

        As `send` in all else. What it raises is said of all of them: besides `Unavailable` and `Refused`
        also `NotTogether`, where it takes no batches after all; then `takes_batches` is False for a while.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Close every connection. Called once, at the end; nothing is sent afterwards."""
        return

    async def listen(self, place: Destination, wanted: Wanted, take: Take) -> None:
        """Bring what comes for `wanted` to `take`, until cancelled: at the most a bounded number at a time.

        A message is forgotten once `take` has answered 2xx for it; what is not is brought again, later and in
        its order, here or to another replica. Raises `Unavailable` where the place cannot be reached, or
        is lost: the caller begins anew, with all that has to be made there. `Refused`: it never will be.
        """
        raise Refused(f"{type(self).__name__} brings nothing")
