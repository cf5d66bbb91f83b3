"""`local://`: a service's own name as destination, dispatched within the process.

The message is encoded and decoded as on any wire; the receiver puts itself here when it is imported.
"""

from __future__ import annotations

from typing import ClassVar

from aevents.transports.base import Destination
from aevents.transports.memory import MemoryTransport, Receiver


class LocalTransport(MemoryTransport):
    """Hands each message to this service's own receiver."""

    can_send_batches = False  # there is no request to be spared
    receivers: ClassVar[dict[str, Receiver]] = {}

    @classmethod
    def mistake_in(cls, url: str) -> str | None:
        return None if url.lower() == "local://" else "it must be local:// and nothing more"

    def _name(self, destination: Destination) -> str:
        return "self"

    def _patience_s(self) -> float | None:
        return None  # to stop waiting for one's own handlers would end none of them
