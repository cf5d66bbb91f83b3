"""A misbehaving peer: what each fault means for the event, for the caller and for everybody else.

Every case runs three ways: through `emit`, through `aemit` and at the transport's seam. After each of
them the same courier delivers to a healthy peer, and to the rude one once it has mended its manners.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import gzip
import logging
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aevents import aemit, emit, emit_many, retry, wire
from aevents.answer import ANSWER_BYTES, Receipt
from aevents.emission import Emission
from aevents.errors import Refused, Unavailable
from aevents.event import Event, Message, new_id
from aevents.transports import http
from aevents.transports.base import Destination
from aevents.transports.http import HttpTransport
from tests.load_emitter import resident_mib
from tests.peers import (
    Exchange,
    Fleet,
    Peer,
    answers,
    answers_and_closes,
    answers_raw,
    black_hole,
    closes,
    eventually,
    hangs,
    refusing,
)
from tests.rude_peer import (
    OK,
    Floods,
    RudePeer,
    answers_and_resets,
    greets,
    hangs_up,
    nowhere,
    resets,
    self_signed,
    slams_the_door,
    stares,
    trickles,
)

TRIES = 2
LIMITS = {"TRIES": TRIES}
# Of each try only: the call waits for both however busy the machine is.
IMPATIENT = {**LIMITS, "ATTEMPT_S": 0.4, "CONNECT_S": 0.3, "CALL_S": 20.0}
MIB = 1024 * 1024


@pytest.fixture
def fleet(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setattr(retry, "_BASE_S", 0.01)  # what is waited between two tries is not the subject
    monkeypatch.setattr(http, "_ANSWER_S", 0.1)
    with Fleet(settings) as fleet:
        yield fleet


@pytest.fixture
async def transport(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpTransport]:
    monkeypatch.setattr(http, "_ANSWER_S", 0.1)
    transport = HttpTransport()
    yield transport
    await transport.close()


def message() -> Message:
    now = datetime.datetime.now(datetime.UTC)
    return wire.encode(Event(new_id(), "noted", b'{"n":1}', "tests", now))


async def outcome_of(transport: HttpTransport, url: str) -> Receipt | Exception:
    try:
        return await transport.send(Destination("peer", url), message())
    except Exception as error:
        return error


def emit_from_async_code(event_type: str, payload: Any) -> Emission:
    return asyncio.run(aemit(event_type, payload))


both_ways = pytest.mark.parametrize(
    "emitted", [pytest.param(emit, id="emit"), pytest.param(emit_from_async_code, id="aemit")]
)
Emitting = Callable[[str, Any], Emission]


@dataclass(frozen=True)
class Case:
    """A fault and what it comes to: `tries` are counted in the Emission and by the peer alike."""

    peer: Callable[[], AbstractContextManager[Any]]
    outcome: str
    tries: int
    #: What stands in `error`; nothing where the event is delivered.
    says: str = ""  # a regular expression
    slowly: bool = False
    refused: bool = False
    #: Does a request arrive whole, so that the peer can count it?
    arrives: bool = True
    limits: Mapping[str, float] = field(default_factory=lambda: LIMITS)


def again(
    peer: Callable[[], AbstractContextManager[Any]],
    says: str,
    *,
    arrives: bool = True,
    limits: Mapping[str, float] = LIMITS,
) -> Case:
    return Case(peer, "failed", TRIES, says, arrives=arrives, limits=limits)


def slowly(peer: Callable[[], AbstractContextManager[Any]], says: str) -> Case:
    return Case(peer, "failed", 1, says, slowly=True)


def delivered(peer: Callable[[], AbstractContextManager[Any]]) -> Case:
    return Case(peer, "delivered", 1)


def raw(data: bytes) -> Callable[[], Peer]:
    return lambda: Peer(answers_raw(data))


def status(number: int) -> Callable[[], Peer]:
    return lambda: Peer(answers(number))


HEAD = b"HTTP/1.1 200 OK\r\n"
LONG = b"content-length: 100\r\n\r\n"
PACKED = gzip.compress(b'{"status":"unhandled"}', mtime=0)  # a verdict, if anybody unpacked it

CASES = {
    # No connection
    "refused": again(refusing, "Connection refused", arrives=False),
    "unresolvable name": again(nowhere, "ClientConnectorDNSError", arrives=False),
    "full backlog": again(black_hole, "ConnectionTimeoutError", arrives=False, limits=IMPATIENT),
    # No answer
    "accepted and never read": again(
        lambda: RudePeer(at_the_door=stares), "TimeoutError", arrives=False, limits=IMPATIENT
    ),
    "accepted and never answered": again(lambda: Peer(hangs), "TimeoutError", limits=IMPATIENT),
    "one byte at a time": again(lambda: Peer(trickles(HEAD + LONG)), "TimeoutError", limits=IMPATIENT),
    "closed at once": again(lambda: RudePeer(at_the_door=hangs_up), "", arrives=False),
    "reset at once": again(lambda: RudePeer(at_the_door=slams_the_door), "", arrives=False),
    "closed before the head": again(lambda: Peer(closes), "ServerDisconnectedError"),
    "closed during the head": again(raw(HEAD), "ServerDisconnectedError"),
    "reset before the head": again(lambda: Peer(resets()), "reset"),
    "reset during the head": again(lambda: Peer(resets(HEAD + b"content-le")), "reset"),
    # No HTTP
    "garbage": again(raw(b"\x00\xff" * 500), "Bad status line"),
    "another protocol": again(raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "Bad status line"),
    "a greeting": again(
        lambda: RudePeer(at_the_door=greets(b"220 mail\r\n")),
        # Whichever aiohttp meets first: with uvloop it may be the end of a connection not yet written to.
        "Bad status line|Can not write request body|ServerDisconnectedError",
        arrives=False,
    ),
    "duplicate Content-Length": again(
        raw(HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd"), "Duplicate Content-Length"
    ),
    "Content-Length beside chunks": again(
        raw(HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"), "Transfer-Encoding"
    ),
    "Content-Length that is none": again(raw(HEAD + b"content-length: -1\r\n\r\n"), "Content-Length"),
    "endless headers": again(lambda: Peer(Floods(b"x: y\r\n" * 50, head=HEAD)), "Too many headers"),
    "one endless header": again(lambda: Peer(Floods(b"y" * 4096, head=HEAD + b"x: ")), "more than 8190"),
    "endless 100 Continue": again(
        lambda: Peer(Floods(b"HTTP/1.1 100 Continue\r\n\r\n" * 50)), f"more than {ANSWER_BYTES}"
    ),
    "endless empty lines": again(lambda: Peer(Floods(b"\r\n" * 500)), f"more than {ANSWER_BYTES}"),
    # A good status, and whatever comes after it
    "204 cut in its head": again(raw(b"HTTP/1.1 204 No Content\r\n"), "ServerDisconnectedError"),
    "204 without the body it announced": delivered(raw(b"HTTP/1.1 204 No Content\r\n" + LONG)),
    "200 with its body cut": delivered(raw(HEAD + LONG + b"abc")),
    "200 with its body one byte at a time": delivered(lambda: Peer(trickles(b"x" * 99, at_once=HEAD + LONG))),
    "200 with broken chunks": delivered(raw(HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\nabc")),
    "200 with no end of chunks": delivered(
        lambda: Peer(Floods(b"a=b;" * 1000, head=HEAD + b"transfer-encoding: chunked\r\n\r\n5;"))
    ),
    "200 packed with gzip": delivered(
        raw(HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(PACKED) + PACKED)
    ),
    "200 and then garbage": delivered(raw(OK + b"\x00\xff" * 500)),
    "200 twice": delivered(raw(OK + OK)),
    "reset after the head": delivered(lambda: Peer(resets(HEAD + LONG))),
    "100 Continue and then 200": delivered(raw(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)),
    # Statuses
    **{f"{number}": slowly(status(number), f"answered {number}") for number in (302, 400, 401, 404)},
    "410": Case(status(410), "failed", 1, "answered 410", refused=True),
    "299": delivered(status(299)),
    **{f"{number}": again(status(number), f"answered {number}") for number in (429, 503, 600, 999)},
    "101": again(raw(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\nx"), "answered 101"),
}
all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
both_ways_but_once_where_it_takes_time = pytest.mark.parametrize(
    ("case", "emitted"),
    [
        pytest.param(case, emitted, id=f"{name}, {way}")
        for name, case in CASES.items()
        for way, emitted in (("emit", emit), ("aemit", emit_from_async_code))
        if way == "emit" or case.limits is not IMPATIENT
    ],
)


def seen_by(peer: Any, case: Case) -> int:
    """Return how often the peer was tried: in whole requests, else in connections."""
    return len(peer.requests) if case.arrives else peer.connections


@both_ways_but_once_where_it_takes_time
def test_a_fault_has_its_outcome_and_harms_nobody_else(case: Case, emitted: Emitting, fleet: Fleet) -> None:
    with case.peer() as rude, Peer() as well:
        # Given a service with this fault, and a healthy one
        fleet(
            rude=rude, well=well, SUBSCRIPTIONS={"noted": ["rude"], "healthy": ["well"]}, LIMITS=case.limits
        )

        # When an event goes to the first
        emission = emitted("noted", {"n": 1})

        # Then it fares as the design says, in as many tries as the peer has seen
        (result,) = emission.results
        assert (result.outcome, result.attempts) == (case.outcome, case.tries), result
        assert re.search(case.says, result.error or ""), result
        assert str(result.error).isprintable()
        assert emission.ok is emission.delivered is (case.outcome == "delivered")
        if isinstance(rude, Peer):
            assert seen_by(rude, case) == case.tries

        # And the same courier delivers to the other, and to the first once it is well
        assert emitted("healthy", {"n": 2}).delivered
        assert well.payloads == [{"n": 2}]
        if isinstance(rude, Peer):
            rude.behave(answers())
            if isinstance(rude, RudePeer):
                rude.at_the_door = None
            assert emitted("noted", {"n": 3}).delivered


@all_cases
async def test_nothing_but_unavailable_or_refused_leaves_the_seam(
    case: Case, transport: HttpTransport, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.AEVENTS = {"LIMITS": case.limits}
    with case.peer() as rude:
        outcome = await outcome_of(transport, getattr(rude, "url", rude))

    if case.outcome == "delivered":
        assert outcome == Receipt("")
    else:
        assert type(outcome) is (Refused if case.refused else Unavailable)
        assert re.search(case.says, str(outcome))
        assert getattr(outcome, "slowly", False) is case.slowly
    # Nothing of it was a surprise
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_surprise_in_the_http_client_is_logged_with_its_traceback_and_tried_again(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    surprises = [AssertionError("a bug"), LookupError("another")]
    post = HttpTransport._post

    async def surprising(self: HttpTransport, *given: Any) -> Receipt:
        if surprises:
            raise surprises.pop()
        return await post(self, *given)

    monkeypatch.setattr(HttpTransport, "_post", surprising)
    with Peer() as peer:
        fleet(payments=peer)

        emission = emit("noted", {})

    assert (emission.delivered, emission.results[0].attempts) == (True, 3)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert {r.getMessage() for r in errors} == {"A try to deliver to payments failed in an unknown way"}
    assert [type(r.exc_info[1]) for r in errors if r.exc_info] == [LookupError, AssertionError]


# How much is read, and for how long

FLOODS = {
    "50 MB": (b"x" * 65536, HEAD + b"content-length: 52428800\r\n\r\n", "delivered"),
    "50 MB of an error": (b"x" * 65536, b"HTTP/1.1 500 No\r\ncontent-length: 52428800\r\n\r\n", "failed"),
    "endless until it closes": (b"x" * 65536, HEAD + b"\r\n", "delivered"),
    "endless chunks": (
        b"1000\r\n" + b"x" * 4096 + b"\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n",
        "delivered",
    ),
    "a gzip bomb": (
        gzip.compress(b"\0" * MIB, 9) * 20,
        HEAD + b"content-encoding: gzip\r\ncontent-length: 52428800\r\n\r\n",
        "delivered",
    ),
    "endless headers": (b"x: y\r\n" * 1000, HEAD, "failed"),
    "endless trailers": (
        b"x: y\r\n" * 1000,
        HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n",
        "delivered",
    ),
    "endless 100 Continue": (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, b"", "failed"),
    "endless answers": (OK * 1000, b"", "delivered"),
    "a binary stream": (bytes(range(256)) * 256, b"", "failed"),
}


@pytest.mark.parametrize(("piece", "head", "outcome"), FLOODS.values(), ids=FLOODS)
def test_of_an_answer_without_end_only_the_beginning_is_read(
    piece: bytes, head: bytes, outcome: str, fleet: Fleet
) -> None:
    # No try's time ends it here
    fleet_limits = {"TRIES": 1, "ATTEMPT_S": 60.0, "CALL_S": 60.0}
    floods = Floods(piece, head=head)
    with Peer(floods) as peer:
        fleet(payments=peer, LIMITS=fleet_limits)
        before = resident_mib()

        emission = emit("noted", {"n": 1})

        assert emission.results[0].outcome == outcome
        floods.wait_for_the_end()
    # 64 KiB by us, the rest by the buffers of the two kernels' ends
    assert floods.sent_bytes < 4 * MIB
    assert floods.floods == 1
    assert resident_mib() - before < 32


def test_services_that_flood_delay_none_of_the_others(fleet: Fleet) -> None:
    with contextlib.ExitStack() as stack:
        # Given services that never end their answers
        kinds = ("endless headers", "endless 100 Continue")
        floods = [(FLOODS[kind][0], FLOODS[kind][1]) for kind in kinds]
        rude = {
            f"rude-{n}": stack.enter_context(Peer(Floods(piece, head=head)))
            for n, (piece, head) in enumerate(floods)
        }
        well = stack.enter_context(Peer())
        fleet(**rude, well=well)

        # When they get more events at once than may be under way
        emit_many([("noted", {"n": n}) for n in range(20)])

        # Then another has every event
        assert sorted(request.payload["n"] for request in well.wait_for(20)) == list(range(20))


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_an_internal_host_makes_no_connection_there(status: int, fleet: Fleet) -> None:
    with Peer() as internal, Peer(answers(status, location=internal.url)) as peer:
        fleet(payments=peer)

        (result,) = emit("noted", {"n": 1}).results

        assert (result.outcome, result.attempts) == ("failed", 1)
        assert result.error == f"answered {status}"
        assert len(peer.requests) == 1
        assert internal.connections == 0


# Retry-After


def test_a_retry_after_that_fits_into_the_call_is_obeyed(fleet: Fleet) -> None:
    # Given services that want to be left alone for a while, each in its own words
    in_a_second = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(seconds=2)
    date = email.utils.format_datetime(in_a_second, usegmt=True)
    wishes = {
        "seconds-429": answers(429, retry_after="1"),
        "seconds-503": answers(503, retry_after="1"),
        "date-429": answers(429, retry_after=date),
        "date-503": answers(503, retry_after=date),
    }
    with contextlib.ExitStack() as stack:
        peers = {name: stack.enter_context(Peer(wish, answers())) for name, wish in wishes.items()}
        fleet(**peers)

        emission = emit("noted", {"n": 1})

        # Then they are, and have the event nevertheless
        assert emission.delivered
        assert [result.attempts for result in emission.results] == [2] * 4
    until = time.monotonic() + in_a_second.timestamp() - time.time()
    for name, peer in peers.items():
        first, second = peer.requests
        assert second.at >= (until if name.startswith("date") else first.at + 1) - 0.01, name
        assert second.id == first.id


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "wish",
    ["3600", "1000000000000", "9" * 1000, "Fri, 31 Dec 9999 23:59:59 GMT"],
    ids=["an hour", "10^12", "a thousand digits", "the year 9999"],
)
def test_a_retry_after_beyond_the_call_ends_it_at_once(wish: str, status: int, fleet: Fleet) -> None:
    with Peer(answers(status, retry_after=wish)) as peer:
        fleet(payments=peer)

        (result,) = emit("noted", {"n": 1}).results

        assert (result.outcome, result.attempts) == ("failed", 1)
        assert result.elapsed_s < 4  # neither was it waited for nor the call's 5 s
        assert len(peer.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "wish",
    ["-5", "-1000000000000", "soon", "1e9", "Thu, 01 Jan 1970 00:00:00 GMT", "", "\xff", "0"],
    ids=["negative", "very negative", "text", "a float", "a date gone by", "empty", "a byte", "zero"],
)
def test_a_retry_after_without_sense_is_ignored(wish: str, status: int, fleet: Fleet) -> None:
    refusal = f"HTTP/1.1 {status} No\r\nretry-after: {wish}\r\ncontent-length: 0\r\n\r\n".encode("latin-1")

    async def refuse(exchange: Exchange) -> None:
        await exchange.raw(refusal)

    with Peer(refuse, answers()) as peer:
        fleet(payments=peer)

        emission = emit("noted", {"n": 1})

        assert emission.delivered
        assert emission.results[0].attempts == 2


# Kept connections


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(answers_and_closes(), id="closed at the next request"),
        pytest.param(answers_and_resets(), id="reset at the next request"),
        pytest.param(answers_raw(OK), id="closed after each answer"),
        pytest.param(resets(OK), id="reset after each answer"),
    ],
)
def test_a_server_that_keeps_no_connection_and_does_not_say_so_loses_no_event(
    behaviour: Any, fleet: Fleet
) -> None:
    with Peer(behaviour) as peer:
        fleet(payments=peer)

        # One after the other
        emissions = [emit("noted", {"n": n}) for n in range(50)]
        # Then so many at once that all connections are kept, and a few that meet what is left of them
        emissions += emit_many([("noted", {"n": n}) for n in range(50, 100)])
        emissions += [emit("noted", {"n": n}) for n in range(100, 120)]

        # None is lost, none sent twice, none visibly retried
        assert all(emission.delivered for emission in emissions)
        assert {emission.results[0].attempts for emission in emissions} == {1}
        assert sorted(payload["n"] for payload in peer.payloads) == list(range(120))


def test_a_kept_connection_that_ends_after_a_while_was_not_idle(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server that takes a request on a kept connection, works on it and dies
    monkeypatch.setattr("aevents.transports.connection._AT_ONCE_S", 0.0)
    with Peer(answers(), closes) as peer:
        fleet(payments=peer, LIMITS={"TRIES": 1})
        assert emit("noted", {"n": 1}).delivered

        # Then that is a try as any other: it may have been handled
        assert emit("noted", {"n": 2}).results[0].outcome == "failed"
        assert peer.payloads == [{"n": 1}, {"n": 2}]


def test_what_was_not_asked_for_is_no_answer(fleet: Fleet) -> None:
    has_left = threading.Event()

    async def answers_twice(exchange: Exchange) -> None:
        await exchange.raw(OK)
        await exchange.peer.released.wait()
        await exchange.raw(OK)
        has_left.set()

    with Peer(answers_twice, hangs) as peer:
        # Given a connection that is kept, and over which a second answer has come
        fleet(payments=peer, LIMITS=IMPATIENT)
        assert emit("noted", {"n": 1}).delivered
        peer.release()
        assert has_left.wait(15)

        # When the next event is never answered
        emission = emit("noted", {"n": 2})

        # Then it does not count as delivered
        assert emission.results[0].outcome == "failed"


# Deploys


def test_a_404_fails_at_once_and_the_next_event_finds_the_service_again(fleet: Fleet) -> None:
    # Given a service whose endpoint is away for a while
    with Peer(*[answers(404)] * 12, answers(204)) as peer:
        fleet(payments=peer)

        emissions = [emit("noted", {"n": n}) for n in range(14)]

        # Then no try is spent on what only a deploy mends, and the service never counts as down
        assert [e.results[0].outcome for e in emissions] == ["failed"] * 12 + ["delivered"] * 2
        assert {e.results[0].attempts for e in emissions} == {1}
        assert len(peer.requests) == 14


# TLS


@both_ways
def test_a_certificate_that_does_not_verify_sends_nothing_and_heals_slowly(
    emitted: Emitting, fleet: Fleet, tmp_path: Path
) -> None:
    with Peer(tls=self_signed(tmp_path)) as peer, Peer() as well:
        fleet(rude=peer, well=well)

        emission = emitted("noted", {"n": 1})

        rude, fine = emission.results
        assert (rude.outcome, rude.attempts, fine.outcome) == ("failed", 1, "delivered")
        assert "certificate verify failed" in str(rude.error)
        assert peer.requests == []


@both_ways
def test_plain_http_to_a_tls_port_is_tried_again(emitted: Emitting, fleet: Fleet, tmp_path: Path) -> None:
    with Peer(tls=self_signed(tmp_path)) as peer, Peer() as well:
        fleet(rude=peer.url.replace("https:", "http:"), well=well, LIMITS=LIMITS)

        rude, fine = emitted("noted", {"n": 1}).results

        assert (rude.outcome, rude.attempts, fine.outcome) == ("failed", TRIES, "delivered")
        assert peer.requests == []


@both_ways
def test_tls_to_a_plain_port_heals_slowly(emitted: Emitting, fleet: Fleet) -> None:
    with RudePeer(at_the_door=greets(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as peer, Peer() as well:
        fleet(rude=peer.url.replace("http:", "https:"), well=well)

        rude, fine = emitted("noted", {"n": 1}).results

        assert (rude.outcome, rude.attempts, fine.outcome) == ("failed", 1, "delivered")
        assert "ClientConnectorSSLError" in str(rude.error)


def test_a_name_that_is_looked_up_for_ever_takes_too_long_and_delays_no_other(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, ended = socket.getaddrinfo, threading.Event()

    def hangs_for_some(host: Any, *given: Any, **named: Any) -> Any:
        if str(host).endswith(".example"):
            ended.wait(60)
        return look_up(host, *given, **named)

    monkeypatch.setattr(socket, "getaddrinfo", hangs_for_some)
    slow = {f"slow-{n}": f"http://slow-{n}.example/" for n in range(20)}
    try:
        with Peer() as peer:
            fleet(
                **slow,
                well=peer.url.replace("127.0.0.1", "localhost"),
                LIMITS={"TRIES": 1, "CONNECT_S": 0.3, "CALL_S": 20.0},
                SUBSCRIPTIONS={"noted": list(slow), "healthy": ["well"]},
            )
            began = time.monotonic()
            results = emit("noted", {}).results
            assert {r.outcome for r in results} == {"failed"}
            assert time.monotonic() - began < 10  # ATTEMPT_S
            assert emit("healthy", {}).delivered
    finally:
        ended.set()


@both_ways
def test_a_tls_port_that_never_shakes_hands_is_a_connection_that_takes_too_long(
    emitted: Emitting, fleet: Fleet
) -> None:
    with RudePeer(at_the_door=stares) as peer, Peer() as well:
        fleet(rude=peer.url.replace("http:", "https:"), well=well, LIMITS={**IMPATIENT, "ATTEMPT_S": 60.0})

        rude, fine = emitted("noted", {"n": 1}).results

        assert (rude.outcome, rude.attempts, fine.outcome) == ("failed", TRIES, "delivered")
        assert "ConnectionTimeoutError" in str(rude.error)


# Anything else

STATUS = st.integers(0, 999).map(lambda n: f"{n:03}".encode())
HEADERS = st.lists(
    st.sampled_from(
        [
            *(
                b"content-length: 0",
                b"content-length: 3",
                b"content-length: x",
                b"transfer-encoding: chunked",
            ),
            *(b"connection: close", b"connection: upgrade", b"upgrade: h2c", b"content-encoding: gzip"),
            *(b"retry-after: 0", b"retry-after: \xff", b"content-type: \xff", b"location: http://[::1"),
            *(b"set-cookie: a=b; expires=\xff", b'set-cookie: ;;="', b": ", b" folded", b"\x00: \x00"),
        ]
    )
    | st.binary(max_size=30),
    max_size=6,
)
BODY = st.binary(max_size=60) | st.sampled_from(
    [b"3\r\nabc\r\n0\r\n\r\n", b'{"status": "failed"}', OK, OK * 3]
)
ANSWER = st.binary(max_size=200) | st.builds(
    lambda version, status, headers, end, body: b"".join(
        (b"HTTP/", version, b" ", status, b" Whatever\r\n", *(h + b"\r\n" for h in headers), end, body)
    ),
    st.sampled_from([b"1.1", b"1.0", b"2", b"9.9"]),
    STATUS | st.sampled_from([b"200", b"204", b"410", b"503"]),
    HEADERS,
    st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b""]),
    BODY,
)


@dataclass
class Whatever:
    """A behaviour: write the pieces, and close the connection or not."""

    pieces: list[bytes]
    closes: bool

    async def __call__(self, exchange: Exchange) -> None:
        with contextlib.suppress(ConnectionError):
            for piece in self.pieces:
                await exchange.raw(piece)
                await asyncio.sleep(0)
        if self.closes:
            exchange.writer.close()


class Correspondence:
    """A transport on a loop of its own and the peer it writes to, for one answer after another."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self._runner = asyncio.Runner(debug=False)
        self._transport = HttpTransport()

    def outcome_of(self, answer: Whatever) -> Receipt | Exception:
        self.peer.behave(answer)
        return self._runner.run(outcome_of(self._transport, self.peer.url))

    def close(self) -> None:
        self._runner.run(self._transport.close())
        self._runner.close()


@pytest.fixture
def correspondence(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Correspondence]:
    monkeypatch.setattr(http, "_ANSWER_S", 0.01)
    settings.AEVENTS = {"LIMITS": {"ATTEMPT_S": 0.03}}
    with Peer() as peer:
        correspondence = Correspondence(peer)
        yield correspondence
        correspondence.close()


def test_whatever_is_answered_is_a_receipt_or_one_of_the_two_errors(
    correspondence: Correspondence, caplog: pytest.LogCaptureFixture
) -> None:
    @given(answer=st.builds(Whatever, ANSWER.flatmap(_in_pieces), st.integers(0, 9).map(bool)))
    @hypothesis_settings(max_examples=300, deadline=None, database=None)
    def check(answer: Whatever) -> None:
        outcome = correspondence.outcome_of(answer)

        whole = b"".join(answer.pieces)
        if isinstance(outcome, Receipt):
            assert re.search(rb"HTTP/1\.[01] 2\d\d", whole)
        elif type(outcome) is Refused:
            assert b" 410 " in whole
        else:
            assert type(outcome) is Unavailable
            assert str(outcome).isprintable()

    check()
    # None of it was unknown, and the transport is as good as before
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    eventually(lambda: correspondence.outcome_of(Whatever([OK], False)) == Receipt(""))


def _in_pieces(data: bytes) -> st.SearchStrategy[list[bytes]]:
    cuts = st.lists(st.integers(0, len(data)), max_size=3).map(sorted)
    return cuts.map(lambda at: [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)])


# The tools


def test_a_name_that_nobody_knows_is_asked_of_nobody() -> None:
    with nowhere() as url, pytest.raises(socket.gaierror):
        socket.getaddrinfo(url.split("/")[2], 80)
