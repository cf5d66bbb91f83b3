"""Leases that are held for longer than they last: each renewed in time, until it is let go."""

from __future__ import annotations

import math
import time

from aevents import store, tables
from aevents.tables import Lease


class Holdings:
    """Any thread holds and lets go; one renews."""

    def __init__(self) -> None:
        self._held: dict[int, Lease] = {}
        self._due_at = 0.0

    @property
    def due_at(self) -> float:
        """When the next renewal is due, on `time.monotonic`'s clock."""
        return self._due_at if self._held else math.inf

    def are_due(self) -> bool:
        """Tell whether it is time."""
        return time.monotonic() >= self.due_at

    def hold(self, lease: Lease) -> None:
        """Renew this lease again and again."""
        if not self._held:
            self._due_at = time.monotonic() + tables.lease_s() / 3
        self._held[lease.id] = lease

    def let_go(self, lease: Lease) -> None:
        """Renew it no more."""
        self._held.pop(lease.id, None)

    def renew(self) -> None:
        """Renew all; those that were lost are let go: who works on one finds nothing to finish."""
        self._due_at = time.monotonic() + tables.lease_s() / 3
        for pk in store.renew(list(self._held.values())):
            self._held.pop(pk, None)
