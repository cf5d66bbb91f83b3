"""Every error of aevents, and which way it points.

    AeventsError
    ├── InvalidEvent          emit was called with something that is no event (a ValueError)
    ├── InvalidSubscription   subscribe_to was called with something that is no handler (a ValueError)
    ├── MalformedMessage      what arrived is not taken: `status` is the answer to give (400 to 415)
    ├── DeliveryError         a try to deliver did not succeed
    │   ├── Unavailable       try again, not before `retry_after_s`; `slowly` where only a person can mend it
    │   ├── NotTogether       the destination takes no batches after all: nothing was tried, send each alone
    │   └── Refused           never try again
    ├── Again                 raised by a handler: run me again in `in_s` seconds
    └── Dead                  raised by a handler: never run me again for this event

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
    destination itself is well and only this event failed there (a handler raised). `rejected`: it said
    of this very request that it is wrong (400, 404, ...). `timed_out`: it may be busy with it still.
    """

    def __init__(
        self,
        detail: str,
        *,
        retry_after_s: float | None = None,
        slowly: bool = False,
        answered: bool = False,
        rejected: bool = False,
        timed_out: bool = False,
    ) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.slowly = slowly
        self.answered = answered
        self.rejected = rejected
        self.timed_out = timed_out


class NotTogether(DeliveryError):
    """The destination takes no batches after all; of the events themselves it said nothing."""


class Refused(DeliveryError):
    """The destination will never take the event; trying again is useless."""


class Again(AeventsError):
    """Raised by a handler: what it did is undone, and it runs again in `in_s` seconds.

    For a handler that has to wait. It is no failure: nothing is logged above INFO, and it may be raised
    as often as it takes; `current_event().attempt` tells how often that was. Needs a `STORE`.
    """

    def __init__(self, in_s: float) -> None:
        super().__init__(f"again in {in_s:g} s")
        self.in_s = float(in_s)


class Dead(AeventsError):
    """Raised by a handler: what it did is undone, and the event is kept as a dead letter with `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
