"""Every error of aevents, and which way it points.

    AeventsError
    ├── InvalidEvent          emit was called with something that is no event (a ValueError)
    ├── InvalidSubscription   subscribe_to was called with something that is no handler (a ValueError)
    ├── MalformedMessage      what arrived is no event: `status` is the answer to give (400, 413, 415, 401)
    └── DeliveryError         a try to deliver did not succeed
        ├── Unavailable       try again, not before `retry_after_s`; `slowly` where only a person can mend it
        └── Refused           never try again

Foreign errors (aiohttp, sockets, TLS) are mapped into `Unavailable` and `Refused` at the transport's
seam and nowhere else.
"""

from __future__ import annotations


class AeventsError(Exception):
    """The base of every error that aevents raises itself."""


class InvalidEvent(AeventsError, ValueError):
    """The event type or the payload cannot be sent; the message says what to change."""


class InvalidSubscription(AeventsError, ValueError):
    """The handler cannot be subscribed; the message says what to change."""


class MalformedMessage(AeventsError):
    """What arrived is not an event that this service takes; `status` is the HTTP answer."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class DeliveryError(AeventsError):
    """One try to deliver one event to one service did not succeed."""


class Unavailable(DeliveryError):
    """The destination cannot take the event now; trying again may succeed.

    `retry_after_s`: the destination's own wish, in seconds. `slowly`: it heals by a deploy or a
    changed key (401, 404, ...), so that trying again at once is pointless. `answered`: the
    destination itself is well and only this event failed there (a handler raised).
    """

    def __init__(
        self,
        detail: str,
        *,
        retry_after_s: float | None = None,
        slowly: bool = False,
        answered: bool = False,
    ) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.slowly = slowly
        self.answered = answered


class Refused(DeliveryError):
    """The destination will never take the event; trying again is useless."""
