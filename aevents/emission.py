"""What emit tells its caller: one Result for each service, together an Emission."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["delivered", "queued", "parked", "failed"]


@dataclass(frozen=True, slots=True)
class Result:
    """How one event fared with one service when `emit` returned.

    `outcome`: `delivered` (the service owns it now); `queued` (it waits for a commit, or was handed
    over and is not waited for); `parked` (stored, will be tried again); `failed` (refused for good,
    or there was nowhere to store it). `error` says why; `elapsed_s` is the time from the call on.
    """

    service: str
    outcome: Outcome
    attempts: int = 0
    error: str | None = None
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Emission:
    """The answer of `emit`: the event's id and type and a `Result` for every subscribed service.

    `error` is set where the call itself was wrong and no event was made.
    """

    id: str
    event_type: str
    results: tuple[Result, ...] = ()
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Nothing is lost: no service's outcome is `failed`."""
        return self.error is None and all(r.outcome != "failed" for r in self.results)

    @property
    def delivered(self) -> bool:
        """Every subscribed service has the event."""
        return self.error is None and all(r.outcome == "delivered" for r in self.results)
