"""What a transport promises: it carries messages to the addresses of its schemes.

`contract.py` holds the same promises as tests; every transport runs them, yours too. `memory.py` is
the one to read first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from aevents.answer import Receipt
from aevents.event import Message


@dataclass(frozen=True, slots=True)
class Destination:
    """A service or broker by its name, and the address it is reached at."""

    name: str
    url: str = field(repr=False)  # it may hold credentials


class Transport(ABC):
    """One instance for each scheme and process, made and used on the courier's event loop only.

    It is shared by all destinations of its schemes and called for many messages at once.
    """

    def __init__(self, **options: Any) -> None:
        """Take the scheme's entry of `TRANSPORTS` without `BACKEND`. Opens nothing yet."""
        self.options = options

    @classmethod
    def mistake_in(cls, url: str) -> str | None:
        """Say what is wrong with `url` and how to mend it, or None. Opens nothing."""
        return None

    @abstractmethod
    async def send(self, destination: Destination, message: Message) -> Receipt:
        """Carry `message` once, and return as soon as the destination owns the event.

        Not idempotent: sending twice may deliver twice, the id inside is the same. Raises
        `Unavailable` where trying again may succeed and `Refused` where it never will; no other
        exception leaves it but `CancelledError`. Bounded in time by itself. It never blocks the
        loop, never follows a destination elsewhere, and reads no more of an answer than it needs.
        """

    async def close(self) -> None:
        """Close every connection. Called once, at the end; nothing is sent afterwards."""
        return
