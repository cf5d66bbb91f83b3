"""Whether to bother a destination at all: the outcomes of tries in, yes or no out.

A circuit breaker (closed, open, one probe) and a retry budget, for one destination. Pure: no loop,
no thread, its clock is handed in.
"""

from __future__ import annotations

import random
from collections.abc import Callable

FAILURES_IN_A_ROW = 5
# Nothing but failure, twice or more, for this long also opens: a host that swallows packets takes
# seconds for each failure.
FAILING_FOR_S = 4.0
HALF_OF = 20  # at least half of as many within the window
WINDOW_S = 10.0
FIRST_PAUSE_S = 1.0  # short, as without a store nothing else brings back what is refused meanwhile
LAST_PAUSE_S = 30.0
RETRY_SHARE = 0.2  # retries for each first try
RETRY_RESERVE = 10.0


class Breaker:
    """Closed while all is well; open for a pause after many failures; then one probe decides."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._failing_since: float | None = None
        self._window_ends = 0.0
        self._window = [0, 0]  # successes, failures
        self._pause_s = 0.0
        self._open_until: float | None = None
        self._probing_since: float | None = None
        self._retries = RETRY_RESERVE

    @property
    def is_open(self) -> bool:
        """Whether tries are refused but for probes."""
        return self._open_until is not None

    @property
    def refuses(self) -> bool:
        """Whether a first try would be refused now: open, and no probe is due."""
        return self._open_until is not None and (self._probing_since is not None or self.pause_s > 0)

    @property
    def failures(self) -> int:
        """How many tries failed in a row."""
        return self._failures

    @property
    def pause_s(self) -> float:
        """How long until a probe may go, in seconds."""
        return max(0.0, (self._open_until or 0.0) - self._clock())

    def admit(self) -> bool:
        """Tell whether a first try may go now; it must be followed by `succeeded` or `failed`."""
        if self._open_until is None:
            self._retries = min(RETRY_RESERVE, self._retries + RETRY_SHARE)
            return True
        now = self._clock()
        if self._probing_since is not None or now < self._open_until:
            return False
        self._probing_since = now
        return True

    def admit_retry(self) -> bool:
        """Tell whether one more try of the same event may go."""
        if self._open_until is not None or self._retries < 1:
            return False
        self._retries -= 1
        return True

    def succeeded(self) -> bool:
        """Note an answer; tell whether this closed the circuit."""
        closed = self._open_until is not None
        self._failures, self._failing_since, self._open_until = 0, None, None
        self._probing_since, self._pause_s = None, 0.0
        if closed:
            self._window = [0, 0]
        self._count(0)
        return closed

    def failed(self, began: float) -> bool:
        """Note that a try which began at `began` got no answer; tell whether this opened the circuit."""
        now = self._clock()
        self._failures += 1
        if self._failing_since is None:
            self._failing_since = began
        self._count(1)
        if self._open_until is not None:
            if self._is_probe(began):  # stragglers from before change nothing
                self._probing_since = None
                self._open(now)
            return False
        failing_s = now - self._failing_since
        if (
            self._failures >= FAILURES_IN_A_ROW
            or (self._failures >= 2 and failing_s >= FAILING_FOR_S)
            or (sum(self._window) >= HALF_OF and self._window[1] * 2 >= sum(self._window))
        ):
            self._open(now)
            return True
        return False

    def gave_up(self, began: float) -> None:
        """Note that a try which began at `began` ended without telling anything of the destination."""
        if self._is_probe(began):
            self._probing_since = None

    def _is_probe(self, began: float) -> bool:
        return self._probing_since is not None and began >= self._probing_since

    def _open(self, now: float) -> None:
        self._pause_s = min(LAST_PAUSE_S, self._pause_s * 2 or FIRST_PAUSE_S)
        self._open_until = now + self._pause_s * random.uniform(0.75, 1.25)  # noqa: S311 - no secret

    def _count(self, index: int) -> None:
        now = self._clock()
        if now >= self._window_ends:
            self._window, self._window_ends = [0, 0], now + WINDOW_S
        self._window[index] += 1
