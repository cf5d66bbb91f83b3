"""When a try is repeated and when it is not: statuses, `Retry-After`, waits, and backoff at work."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aevents import emit, retry
from aevents.answer import Receipt
from aevents.errors import DeliveryError, Refused, Unavailable
from tests.peers import Fleet, Peer, answers

# What a status means


def meaning(status: int, body: bytes = b"", retry_after: str | None = None) -> str:
    try:
        retry.judge(status, body, retry_after)
    except Refused:
        return "never"
    except Unavailable as error:
        return "slowly" if error.slowly else "again"
    return "delivered"


@pytest.mark.parametrize(
    ("statuses", "means"),
    [
        ([200, 201, 202, 204, 206, 299], "delivered"),
        ([300, 301, 302, 303, 304, 307, 308], "slowly"),  # a moved endpoint is mended by a person
        ([400, 401, 403, 404, 405, 406, 411, 413, 414, 415, 422, 431], "slowly"),
        ([408, 409, 425, 429], "again"),
        ([410], "never"),
        ([500, 501, 502, 503, 504, 507, 599, 999], "again"),
        ([100, 103, 199, 600, 0], "again"),
    ],
)
def test_what_a_status_means(statuses: list[int], means: str) -> None:
    assert {status: meaning(status) for status in statuses} == dict.fromkeys(statuses, means)


@given(status=st.integers(0, 1000), body=st.binary(max_size=60), retry_after=st.none() | st.text())
@settings(max_examples=100, deadline=None, database=None)
def test_whatever_is_answered_is_delivered_or_a_delivery_error(
    status: int, body: bytes, retry_after: str | None
) -> None:
    if 200 <= status < 300:
        assert isinstance(retry.judge(status, body, retry_after), Receipt)
        return
    with pytest.raises(DeliveryError) as raised:
        retry.judge(status, body, retry_after)
    assert str(raised.value).startswith(f"answered {status}")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("content", "verdict"),
    [
        ({"status": "handled"}, "handled"),
        ({"status": "unhandled", "id": "1"}, "unhandled"),
        ({"status": 7}, ""),
        ({"status": "a\nb"}, ""),
        ({"status": "x" * 41}, ""),
        ({}, ""),
        ([], ""),
        ("handled", ""),
        (None, ""),
    ],
)
def test_the_verdict_of_a_good_answer_is_kept_where_it_is_one(content: Any, verdict: str) -> None:
    assert retry.judge(200, orjson.dumps(content)) == Receipt(verdict)


@pytest.mark.parametrize("body", [b"", b"OK", b"\xff\xfe", b'{"status": "hand', b"[" * 5000])
def test_a_good_answer_without_sense_is_good_all_the_same(body: bytes) -> None:
    assert retry.judge(204, body) == Receipt("")


def test_the_detail_of_a_bad_answer_is_told_cut_and_escaped() -> None:
    with pytest.raises(Unavailable) as raised:
        retry.judge(400, orjson.dumps({"detail": "line\nbreak" + "x" * 1000}))

    assert str(raised.value).startswith(r"answered 400: 'line\nbreakxxx")
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize(
    ("status", "content", "answered"),
    [
        (503, {"status": "failed"}, True),
        (503, {"status": "handled"}, False),
        (503, {}, False),
        (503, None, False),
        (500, {"status": "failed"}, False),
        (502, {"status": "failed"}, False),
    ],
)
def test_only_a_503_that_says_a_handler_failed_shows_the_destination_to_be_well(
    status: int, content: Any, answered: bool
) -> None:
    with pytest.raises(Unavailable) as raised:
        retry.judge(status, orjson.dumps(content))

    assert raised.value.answered is answered
    assert not raised.value.slowly


# Retry-After


def http_date(seconds_from_now: float) -> str:
    when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds_from_now)
    return email.utils.format_datetime(when, usegmt=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("5", 5.0),
        (" 5 ", 5.0),
        ("3600", 3600.0),
        ("3601", 3600.0),
        ("1000000000000", 3600.0),
        ("9" * 5000, 3600.0),
        ("0" * 20 + "1", 0.0),  # absurd, and harmless
        (None, None),
        ("", None),
        ("   ", None),
        ("-5", None),
        ("-1000000000000", None),
        ("+5", None),
        ("1e3", None),
        ("\N{FULLWIDTH DIGIT FIVE}", None),
        ("²", None),
        ("soon", None),
        ("Fri, 99 Foo 2030", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", None),
        ("Fri, 01 Jan 2100 00:00:00 -0500", 3600.0),
        ("Fri, 01 Jan 2100 00:00:00 -9999", None),
    ],
)
def test_retry_after_is_read_and_bounded_and_what_is_absurd_is_ignored(
    text: str | None, seconds: float | None
) -> None:
    assert retry.seconds_of(text) == seconds


def test_retry_after_may_be_a_date() -> None:
    seconds = retry.seconds_of(http_date(100))

    assert seconds is not None
    assert 90 < seconds <= 100
    assert retry.seconds_of(http_date(-100)) is None


@given(text=st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ \S*"))
@settings(max_examples=100, deadline=None, database=None)
def test_no_retry_after_breaks_anything(text: str) -> None:
    seconds = retry.seconds_of(text)

    assert seconds is None or 0 <= seconds <= 3600


# Waits


@pytest.mark.parametrize(("next_try", "most"), [(2, 0.25), (3, 0.5), (4, 1), (5, 2), (6, 2), (50, 2)])
def test_waits_double_up_to_a_cap_under_full_jitter(next_try: int, most: float) -> None:
    waits = [retry.wait_before(next_try, Unavailable("down")) for _ in range(500)]

    assert 0 <= min(waits) < most * 0.2
    assert most * 0.8 < max(waits) <= most


def test_a_wait_is_never_shorter_than_the_destination_asked_for() -> None:
    waits = [retry.wait_before(2, Unavailable("down", retry_after_s=0.2)) for _ in range(200)]

    assert min(waits) >= 0.2
    assert retry.wait_before(2, Unavailable("down", retry_after_s=3600)) == 3600


# Tries within a call


@dataclass
class Thing:
    """What is tried here: the plainest that `within_the_call` takes."""

    attempts: int = 0
    gives_up_at: float = 0.0


class Call:
    """Tries with a script of errors; notes what happened."""

    def __init__(self, *script: Exception, may_retry: Callable[[], bool] = lambda: True) -> None:
        self.script = list(script)
        self.began_at: list[float] = []
        self.told: list[tuple[str, float]] = []
        self.thing = Thing(gives_up_at=time.monotonic() + 60)
        self.tried = retry.within_the_call(self._attempt, may_retry, self._on_retry)

    async def _attempt(self, thing: Thing) -> str:
        self.began_at.append(time.monotonic())
        if self.script:
            raise self.script.pop(0)
        return "taken"

    def _on_retry(self, thing: Thing, error: DeliveryError, wait_s: float) -> None:
        self.told.append((str(error), wait_s))

    async def run(self) -> str:
        return await self.tried(self.thing)


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_BASE_S", 0.0)


@pytest.mark.usefixtures("no_waits")
async def test_what_is_unavailable_is_tried_again_until_it_is_taken() -> None:
    call = Call(Unavailable("first"), Unavailable("second"))

    assert await call.run() == "taken"

    assert call.thing.attempts == 3
    assert [error for error, _ in call.told] == ["first", "second"]


@pytest.mark.usefixtures("no_waits")
async def test_after_the_last_try_its_error_is_raised() -> None:
    call = Call(Unavailable("first"), Unavailable("second"), Unavailable("third"), Unavailable("no"))

    with pytest.raises(Unavailable, match="third"):
        await call.run()

    assert call.thing.attempts == 3


@pytest.mark.usefixtures("no_waits")
async def test_the_number_of_tries_is_a_setting(settings: Any) -> None:
    settings.AEVENTS = {"LIMITS": {"TRIES": 5}}
    call = Call(*[Unavailable("down")] * 9)

    with pytest.raises(Unavailable):
        await call.run()

    assert call.thing.attempts == 5


@pytest.mark.parametrize(
    "error",
    [Refused("gone"), Unavailable("wrong key", slowly=True), ValueError("unknown")],
    ids=["refused", "slowly", "foreign"],
)
async def test_what_another_try_cannot_mend_is_tried_once(error: Exception) -> None:
    call = Call(error)

    with pytest.raises(type(error)):
        await call.run()

    assert (call.thing.attempts, call.told) == (1, [])


async def test_no_try_begins_after_the_call_has_given_up() -> None:
    # A wish of 60 s in a call of 1 s: not even waited for, and not cut short either
    call = Call(Unavailable("busy", retry_after_s=60))
    call.thing.gives_up_at = time.monotonic() + 1
    began = time.monotonic()

    with pytest.raises(Unavailable) as raised:
        await call.run()

    assert time.monotonic() - began < 1
    assert raised.value.retry_after_s == 60
    assert call.thing.attempts == 1


async def test_the_destinations_wish_is_kept_to_the_second() -> None:
    call = Call(Unavailable("busy", retry_after_s=0.3))

    await call.run()

    first, second = call.began_at
    assert second - first >= 0.3
    assert call.told[0][1] >= 0.3


@pytest.mark.usefixtures("no_waits")
async def test_no_retry_goes_where_the_budget_is_spent() -> None:
    budget = [True, False]
    call = Call(Unavailable("first"), Unavailable("second"), may_retry=lambda: budget.pop(0))

    with pytest.raises(Unavailable, match="second"):
        await call.run()

    assert call.thing.attempts == 2


@pytest.mark.usefixtures("no_waits")
async def test_the_budget_is_asked_only_for_tries_that_would_go() -> None:
    asked = itertools.count(1)
    call = Call(Unavailable("1"), Unavailable("2"), Unavailable("3"), may_retry=lambda: bool(next(asked)))

    with pytest.raises(Unavailable):
        await call.run()

    assert next(asked) == 3


@pytest.mark.usefixtures("no_waits")
async def test_one_decorated_function_serves_many_calls_at_once() -> None:
    call = Call(*[Unavailable("down")] * 4)
    things = [Thing(gives_up_at=time.monotonic() + 60) for _ in range(4)]

    assert await asyncio.gather(*(call.tried(thing) for thing in things)) == ["taken"] * 4

    assert [thing.attempts for thing in things] == [2] * 4


# On a real wire


@pytest.fixture
def fleet(settings: Any) -> Iterator[Fleet]:
    with Fleet(settings) as fleet:
        yield fleet


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 999])
def test_a_passing_trouble_is_outlasted_within_the_call(status: int, fleet: Fleet) -> None:
    with Peer(answers(status), answers(status), answers(200)) as peer:
        fleet(payments=peer)

        emission = emit("noted", {"n": 1})

    assert emission.delivered
    assert emission.results[0].attempts == 3
    assert len({request.id for request in peer.requests}) == 1
    assert len({request.body for request in peer.requests}) == 1


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 410, 413, 422])
def test_a_lasting_trouble_is_told_after_one_try(status: int, fleet: Fleet) -> None:
    with Peer(answers(status, {"detail": "No."})) as peer:
        fleet(payments=peer)

        emission = emit("noted", {"n": 1})

    (result,) = emission.results
    assert (result.outcome, result.attempts) == ("failed", 1)
    assert result.error == f"answered {status}: 'No.'"
    assert len(peer.requests) == 1


def test_retry_after_on_the_wire_is_waited_for(fleet: Fleet) -> None:
    with Peer(answers(429, retry_after="1"), answers(200)) as peer:
        fleet(payments=peer)

        assert emit("noted", {"n": 1}).delivered

    first, second = peer.requests
    assert second.at - first.at >= 1


def test_a_retry_after_that_no_call_can_wait_for_fails_at_once(fleet: Fleet) -> None:
    with Peer(answers(503, retry_after="3600")) as peer:
        fleet(payments=peer)

        emission = emit("noted", {"n": 1})

    assert emission.results[0].attempts == 1
    assert emission.results[0].outcome == "failed"


@pytest.mark.usefixtures("no_waits")
def test_each_try_is_stamped_with_its_own_time_and_logged(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aevents")
    with Peer(answers(503), answers(200)) as peer:
        fleet(payments=peer)

        emission = emit("noted", {"n": 1})

    assert all(abs(int(r.headers["webhook-timestamp"]) - time.time()) < 60 for r in peer.requests)
    (record,) = [r for r in caplog.records if r.levelname == "INFO"]
    assert record.getMessage().startswith(
        f"Not delivered noted {emission.id} to payments at try 1 (again in 0.00 s): answered 503"
    )
    assert record.event_id == emission.id  # type: ignore[attr-defined]  # extra=
