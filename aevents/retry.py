"""When to try again: an answer or an error in, `Unavailable` or `Refused` and a wait out.

Knows no transport. The tries within a call run on `backoff`, of which only the part is used that
its maintained fork `python-backoff` has too.
"""

from __future__ import annotations

import email.utils
import functools
import random
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import backoff
import orjson

from aevents.answer import Receipt
from aevents.errors import Again, Dead, DeliveryError, Refused, Unavailable
from aevents.settings import conf

# A wait within a call is uniform(0, min(cap, base * 2 ** n)): "full jitter".
_BASE_S = 0.25
_CAP_S = 2.0
MAX_RETRY_AFTER_S = 3600.0
# Statuses that a deploy, a changed key or a person heals; asking again at once changes nothing.
_SLOW = frozenset({400, 401, 403, 404, 405, 406, 411, 413, 414, 415, 422, 431, *range(300, 400)})
_GONE = 410
# Of those, the ones that are about this request: no waiting for three days will make it right.
_REJECTED = _SLOW - {401, 403}
_REJECTED_WAITS_S = (120.0, 1800.0, 7200.0)
_SLOW_WAIT_S = 120.0

T = TypeVar("T")


def judge(status: int, body: bytes = b"", retry_after: str | None = None) -> Receipt:
    """Return the receipt of a real answer's 2xx status; raises what any other status means."""
    if 200 <= status < 300:
        return Receipt(_verdict(body))
    answered = status == 503 and _verdict(body) == "failed"
    raise failure(status, _read(body).get("detail"), seconds_of(retry_after), answered=answered)


def failure(status: int, detail: object, retry_after_s: float | None, *, answered: bool) -> DeliveryError:
    """Return what a status other than 2xx means."""
    text = f"answered {status}"
    if isinstance(detail, str):
        text += f": {detail[:200]!a}"
    if status == _GONE:
        return Refused(text)
    return Unavailable(
        text,
        retry_after_s=retry_after_s,
        slowly=status in _SLOW,
        rejected=status in _REJECTED,
        answered=answered,
    )


def unreachable(detail: str, *, timed_out: bool = False) -> Unavailable:
    """Return the error of a destination that gave no answer at all."""
    return Unavailable(detail, timed_out=timed_out)


def seconds_of(retry_after: str | None) -> float | None:
    """Return a `Retry-After` (RFC 9110, section 10.2.3) in seconds, at most an hour; None if absurd."""
    if not retry_after:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), MAX_RETRY_AFTER_S)
    try:
        seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(seconds, MAX_RETRY_AFTER_S) if seconds > 0 else None


def wait_before(next_try: int, error: Unavailable) -> float:
    """Return the seconds to wait before try number `next_try` (2 is the first that waits)."""
    jittered = random.uniform(0, min(_CAP_S, _BASE_S * 2 ** (next_try - 2)))  # noqa: S311 - not a secret
    return max(jittered, error.retry_after_s or 0.0)


@dataclass(frozen=True, slots=True)
class Later:
    """When what is stored is tried again, after so many attempts and rejections in a row; or never."""

    attempts: int
    refusals: int
    in_s: float = 0.0
    is_dead: bool = False


def later(attempts: int, refusals: int, error: BaseException) -> Later:
    """Return what `error` means for a stored delivery that had failed `attempts` times before.

    By `SCHEDULE`, each wait times a random 0.5 to 1.5, no sooner than a `Retry-After`. A rejection
    (400, 404, ...) is tried after 2 min, 30 min and 2 h and then dead; `Refused` and `Dead` are dead
    at once, `Again` comes when it says, as often as it says.
    """
    attempts += 1
    if isinstance(error, (Refused, Dead)):
        return Later(attempts, refusals, is_dead=True)
    if isinstance(error, Again):
        return Later(attempts, 0, max(0.0, error.in_s))
    is_rejected = isinstance(error, Unavailable) and error.rejected
    refusals = refusals + 1 if is_rejected else 0
    waits = _REJECTED_WAITS_S if is_rejected else tuple(conf().SCHEDULE)
    nth = refusals if is_rejected else attempts
    if nth > len(waits):
        return Later(attempts, refusals, is_dead=True)
    wait_s = waits[nth - 1]
    if isinstance(error, Unavailable) and error.slowly:
        wait_s = max(wait_s, _SLOW_WAIT_S)
    wait_s *= random.uniform(0.5, 1.5)  # noqa: S311 - not a secret
    if isinstance(error, Unavailable):
        wait_s = max(wait_s, error.retry_after_s or 0.0)
    return Later(attempts, refusals, wait_s)


class Try(Protocol):
    """What `within_the_call` needs to know of the thing it tries."""

    attempts: int
    gives_up_at: float  # on time.monotonic's clock: no try begins after it


P = TypeVar("P", bound=Try)


class _TryAgain(Exception):
    """Carries an error and its wait through backoff, which has no place for the second."""

    def __init__(self, error: DeliveryError, wait_s: float) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s


def within_the_call(
    attempt: Callable[[P], Awaitable[T]],
    may_retry: Callable[[], bool],
    on_retry: Callable[[P, DeliveryError, float], None],
) -> Callable[[P], Awaitable[T]]:
    """Return `attempt`, tried again after `Unavailable`: at most `TRIES` times, none too late.

    A try whose wait (`Retry-After` included) would end after `gives_up_at` is not begun, nor one that
    `may_retry` forbids; the last error is raised. Decorated at the first call, as on Python 3.14
    backoff warns when it decorates.
    """

    async def guarded(thing: P) -> T:
        thing.attempts += 1
        try:
            return await attempt(thing)
        except Unavailable as error:
            wait_s = wait_before(thing.attempts + 1, error)
            if (
                error.slowly
                or thing.attempts >= conf().LIMITS.TRIES
                or time.monotonic() + wait_s >= thing.gives_up_at
                or not may_retry()
            ):
                raise
            raise _TryAgain(error, wait_s) from error

    def told(details: Any) -> None:
        again: _TryAgain = details["exception"]
        on_retry(details["args"][0], again.error, again.wait_s)

    async def resumed(thing: P, failed: list[_TryAgain]) -> T:
        if failed:
            raise failed.pop()
        return await guarded(thing)

    @functools.cache
    def decorated() -> Callable[[P, list[_TryAgain]], Awaitable[T]]:
        decorate = backoff.on_exception(_waits, _TryAgain, jitter=None, logger=None, on_backoff=told)
        return decorate(resumed)

    async def tried(thing: P) -> T:
        try:  # most tries are the first and the last: they need none of the machinery
            return await guarded(thing)
        except _TryAgain as again:
            return await decorated()(thing, [again])

    return tried


def _waits() -> Generator[float, Any, None]:
    again: _TryAgain = yield 0.0  # backoff primes it
    while True:
        again = yield again.wait_s


def _verdict(body: bytes) -> str:
    status = _read(body).get("status")
    return status if isinstance(status, str) and len(status) <= 40 and status.isprintable() else ""


def _read(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body) if body else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
