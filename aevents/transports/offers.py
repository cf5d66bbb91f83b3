"""Which destinations take batches: the `Accept-Post` of their answers in, yes or no out."""

from __future__ import annotations

import functools
import time

from aevents.transports.base import Destination
from aevents.wire import BATCH

_WITHDRAWN_S = 60.0


class Offers:
    """What the last answer of each destination offered, unless it was withdrawn lately."""

    def __init__(self) -> None:
        self._takers: set[str] = set()
        self._again_at: dict[str, float] = {}

    def __contains__(self, destination: Destination) -> bool:
        return destination.url in self._takers

    def note(self, destination: Destination, accept_post: str | None) -> None:
        """Learn from an answer."""
        url = destination.url
        if accept_post is None or not _names_batches(accept_post):
            self._takers.discard(url)
        elif url not in self._takers and time.monotonic() >= self._again_at.get(url, 0.0):
            self._takers.add(url)

    def withdraw(self, destination: Destination) -> None:
        """Believe no offer for a while: what was offered was not taken."""
        self._takers.discard(destination.url)
        self._again_at[destination.url] = time.monotonic() + _WITHDRAWN_S


@functools.lru_cache(256)
def _names_batches(accept_post: str) -> bool:
    names = (part.partition(";")[0].strip().lower() for part in accept_post.split(","))
    return BATCH in names
