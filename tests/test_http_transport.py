"""The HTTP transport against servers that misbehave: what leaves, what comes back, what is kept quiet."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from aevents import emit, wire
from aevents.answer import Receipt
from aevents.errors import Refused, Unavailable
from aevents.event import Event, Message, new_id
from aevents.transports import http
from aevents.transports.base import Destination
from aevents.transports.http import HttpTransport
from tests.peers import (
    Exchange,
    Fleet,
    Peer,
    answers,
    answers_and_closes,
    answers_raw,
    black_hole,
    closes,
    hangs,
    refusing,
)

# A certificate for 127.0.0.1, signed by nobody, valid until the year 2126, and the key to it.
CERTIFICATE = (
    "MIIBkDCCATagAwIBAgIUdzRgOzYJJ+h5cSIrspjbsl9L/ygwCgYIKoZIzj0EAwIwFDESMBAGA1UEAwwJMTI3LjAu"
    "MC4xMCAXDTI2MTEyMzE5MzIwMloYDzIxMjYxMDMwMTkzMjAyWjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcq"
    "hkjOPQIBBggqhkjOPQMBBwNCAAQYEkQmygb4KkUwcSh3r/w66jxqaOUL2/i0h1E/KF7oaQc2MT4SapVVS0WMw9wo"
    "hldx04DKYkyTSoNpR7a4aHq/o2QwYjAdBgNVHQ4EFgQUAPNd5RNuMT3OebqtqkRL7FRscN0wHwYDVR0jBBgwFoAU"
    "APNd5RNuMT3OebqtqkRL7FRscN0wDwYDVR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMC"
    "A0gAMEUCIHmET7ZQcfAvpUXo9RZ8rQ84vUXCnSWW+AbPupd+4czPAiEA7/frRPT2q8bsbVwup/SYpcffWBdf48XI"
    "TbRLbQjUwMQ="
)
KEY = (
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgS+qhJnw2f9hyZAXeK5pePayMLH9vV0d2Sk++z9rS"
    "N/+hRANCAAQYEkQmygb4KkUwcSh3r/w66jxqaOUL2/i0h1E/KF7oaQc2MT4SapVVS0WMw9wohldx04DKYkyTSoNp"
    "R7a4aHq/"
)


@pytest.fixture
def fleet(settings: Any) -> Iterator[Fleet]:
    with Fleet(settings) as fleet:
        yield fleet


@pytest.fixture
async def transport() -> AsyncIterator[HttpTransport]:
    transport = HttpTransport()
    yield transport
    await transport.close()


def message(**given: Any) -> Message:
    facts = {"type": "user-created", "data": b'{"user_id":7}', "source": "accounts", **given}
    return wire.encode(Event(id=new_id(), time=datetime.datetime.now(datetime.UTC), **facts))


async def send(transport: HttpTransport, url: str, sent: Message | None = None) -> Receipt:
    return await transport.send(Destination("payments", url), sent or message())


# What leaves


async def test_a_request_is_the_wire_s_headers_and_body_and_nothing_else(
    transport: HttpTransport,
) -> None:
    sent = message()
    with Peer() as peer:
        await send(transport, peer.url + "deep/?tenant=a&b=%20c", sent)

    (request,) = peer.requests
    assert (request.method, request.path) == ("POST", "/events/deep/?tenant=a&b=%20c")
    assert request.body == b'{"event_type":"user-created","payload":{"user_id":7}}' == sent.body
    stamped = request.headers.pop("webhook-timestamp")
    assert stamped.isdigit()
    assert request.headers == {
        **sent.headers,
        "host": f"127.0.0.1:{peer.port}",
        "user-agent": "aevents",
        "accept": "application/json",
        "content-length": str(len(sent.body)),
    }
    assert {"content-type", "webhook-id", "ce-id", "ce-type", "ce-source", "ce-time"} < set(request.headers)


async def test_headers_survive_what_no_header_can_hold(transport: HttpTransport) -> None:
    sent = message(type="größe 100% 🎉", source="kön\r\nig", key='"k"', cause="ä", hops=3)
    with Peer() as peer:
        await send(transport, peer.url, sent)

    (request,) = peer.requests
    assert request.headers["ce-type"] == "gr%C3%B6%C3%9Fe%20100%25%20%F0%9F%8E%89"
    assert request.headers["ce-source"] == "/k%25C3%25B6n%250D%250Aig"
    assert request.headers["ce-hops"] == "3"
    decoded = wire.decode(Message(request.headers, request.body))
    assert (decoded.type, decoded.key, decoded.cause) == ("größe 100% 🎉", '"k"', "ä")


async def test_credentials_in_the_url_are_sent_as_basic_authorization(transport: HttpTransport) -> None:
    with Peer() as peer:
        await send(transport, peer.url.replace("://", "://user:s%40cret@"))

    assert peer.requests[0].headers["authorization"] == "Basic dXNlcjpzQGNyZXQ="
    assert "secret" not in peer.requests[0].headers["host"]


async def test_a_host_name_is_looked_up(transport: HttpTransport) -> None:
    with Peer() as peer:
        await send(transport, peer.url.replace("127.0.0.1", "localhost"))

    assert len(peer.requests) == 1


async def test_proxies_of_the_environment_are_left_aside(
    transport: HttpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing() as proxy, Peer() as peer:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("http_proxy", proxy)

        await send(transport, peer.url)

    assert len(peer.requests) == 1


# Connections


@pytest.fixture
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the machine takes between two requests, or for the rest of an answer."""
    monkeypatch.setattr(http, "_KEEP_ALIVE_S", 60.0)
    monkeypatch.setattr(http, "_ANSWER_S", 60.0)


@pytest.mark.usefixtures("_unhurried")
async def test_a_connection_is_kept_and_used_again(transport: HttpTransport) -> None:
    with Peer() as peer:
        for _ in range(5):
            await send(transport, peer.url)

    assert [request.connection for request in peer.requests] == [1] * 5


@pytest.mark.usefixtures("_unhurried")
async def test_a_connection_is_kept_whatever_was_answered_to_the_end(transport: HttpTransport) -> None:
    body = {"status": "failed", "detail": "x" * 10_000}
    with Peer(answers(204), answers(200, body), answers(503, body), answers(400), answers(200)) as peer:
        for _ in range(6):
            with contextlib.suppress(Unavailable):
                await send(transport, peer.url)

    assert [request.connection for request in peer.requests] == [1] * 6


def test_a_kept_connection_closed_in_the_moment_of_its_use_costs_no_attempt(fleet: Fleet) -> None:
    with Peer(answers_and_closes(), answers()) as peer:
        fleet(payments=peer)
        assert emit("noted", {"n": 1}).delivered

        # When the server lets go of the connection just as the next request is on it
        emission = emit("noted", {"n": 2})

        # Then it went again at once over a new one
        assert emission.delivered
        assert emission.results[0].attempts == 1
        assert peer.payloads == [{"n": 1}, {"n": 2}]
        assert peer.connections == 2


def test_a_kept_connection_closed_while_idle_is_replaced(fleet: Fleet) -> None:
    with Peer(answers_raw(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), answers()) as peer:
        fleet(payments=peer)

        emissions = [emit("noted", {"n": n}) for n in range(3)]

        assert [e.results[0].attempts for e in emissions] == [1, 1, 1]
        assert all(e.delivered for e in emissions)


async def test_a_server_that_closes_every_connection_is_unavailable(transport: HttpTransport) -> None:
    with Peer(closes) as peer:
        with pytest.raises(Unavailable) as raised:
            await send(transport, peer.url)

        assert not raised.value.slowly
        assert len(peer.requests) == 1  # at once again only over a connection that may have been idle


async def test_closing_a_transport_that_sent_nothing_is_fine() -> None:
    await HttpTransport().close()


# Answers


async def test_a_redirect_is_never_followed(transport: HttpTransport) -> None:
    with Peer() as elsewhere:
        for status in (301, 302, 303, 307, 308):
            with Peer(answers(status, location=elsewhere.url)) as peer:
                with pytest.raises(Unavailable, match=f"answered {status}") as raised:
                    await send(transport, peer.url)
                assert raised.value.slowly
                assert len(peer.requests) == 1

        assert elsewhere.requests == []


def test_an_idle_connection_is_let_go_before_any_common_server_closes_it() -> None:
    assert http._KEEP_ALIVE_S < 2.0  # gunicorn's keep-alive, the shortest


async def test_cookies_are_not_kept(transport: HttpTransport) -> None:
    with Peer(answers(200, set_cookie="session=1; Path=/")) as peer:
        url = peer.url.replace("127.0.0.1", "localhost")  # no cookie jar keeps those of bare addresses
        await send(transport, url)
        await send(transport, url)

    assert ["cookie" in request.headers for request in peer.requests] == [False, False]


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200",
        b"<html>",
        b"\0" * 1000,
    ],
)
async def test_garbage_is_no_answer(answer: bytes, transport: HttpTransport) -> None:
    with Peer(answers_raw(answer)) as peer, pytest.raises(Unavailable) as raised:
        await send(transport, peer.url)

    assert not raised.value.slowly
    assert not raised.value.answered
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\ncontent-length: 100\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\ncontent-length: 100\r\n\r\nabc",
        b"HTTP/1.1 202 Accepted\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 202 Accepted\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=nonsense\r\n"
        b"content-length: 3\r\n\r\n\xff\xfe\xfd",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    ],
)
async def test_a_good_status_is_delivered_whatever_comes_after_it(
    answer: bytes, transport: HttpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_ANSWER_S", 0.1)
    with Peer(answers_raw(answer)) as peer:
        assert await send(transport, peer.url) == Receipt("")

        assert len(peer.requests) == 1


async def test_a_verdict_is_read_from_a_good_answer(transport: HttpTransport) -> None:
    with Peer(answers(200, {"status": "unhandled"})) as peer:
        assert await send(transport, peer.url) == Receipt("unhandled")


async def test_a_body_that_never_comes_changes_no_status(
    transport: HttpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def only_the_head(exchange: Exchange) -> None:
        await exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
        await hangs(exchange)

    monkeypatch.setattr(http, "_ANSWER_S", 0.1)
    with Peer(only_the_head, answers()) as peer:
        assert await send(transport, peer.url) == Receipt("")
        # and the connection whose answer is still owed is not used again
        await send(transport, peer.url)

    assert [request.connection for request in peer.requests] == [1, 2]


async def test_a_huge_body_is_not_read(transport: HttpTransport) -> None:
    written, has_hung_up = 0, threading.Event()

    async def endless(exchange: Exchange) -> None:
        nonlocal written
        await exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n")
        try:
            while True:
                await exchange.raw(b"x" * 65536)
                written += 65536
        finally:
            has_hung_up.set()

    with Peer(endless) as peer:
        assert await send(transport, peer.url) == Receipt("")
        assert await asyncio.to_thread(has_hung_up.wait, 15)

    assert written < 64 * 1024 * 1024  # what the kernel's buffers took, not 10 GB


async def test_the_detail_of_a_refusal_is_read(transport: HttpTransport) -> None:
    told = pytest.raises(Unavailable, match=r"answered 413: 'Too large\.'")
    with Peer(answers(413, {"detail": "Too large."})) as peer, told:
        await send(transport, peer.url)


async def test_no_answer_at_all_is_unavailable_after_a_try_s_time(settings: Any) -> None:
    settings.AEVENTS = {"LIMITS": {"ATTEMPT_S": 0.2, "CONNECT_S": 0.2}}
    transport = HttpTransport()
    with Peer(hangs) as peer, black_hole() as swallows, refusing() as refuses:
        for url in (peer.url, swallows, refuses):
            with pytest.raises(Unavailable) as raised:
                await send(transport, url)
            assert not raised.value.slowly
            assert str(raised.value)
    await transport.close()


# TLS


def pem(what: str, content: str) -> str:
    lines = "\n".join(content[n : n + 64] for n in range(0, len(content), 64))
    return f"-----BEGIN {what}-----\n{lines}\n-----END {what}-----\n"


async def test_a_certificate_that_nobody_signed_is_not_trusted_and_heals_slowly(
    transport: HttpTransport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "self-signed.pem"
    path.write_text(pem("PRIVATE KEY", KEY) + pem("CERTIFICATE", CERTIFICATE))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with Peer(tls=context) as peer, pytest.raises(Unavailable) as raised:
        await send(transport, peer.url)

    assert raised.value.slowly
    assert "certificate" in str(raised.value).lower()
    assert peer.requests == []


async def test_a_server_that_speaks_no_tls_heals_slowly(transport: HttpTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak_plainly() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=speak_plainly)
        thread.start()
        with pytest.raises(Unavailable) as raised:
            await send(transport, f"https://127.0.0.1:{listener.getsockname()[1]}/")
        thread.join()

    assert raised.value.slowly


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http:",
        "http://",
        "http:///events/",
        "http:/host/",
        "//host/events/",
        "host/events/",
        "ftp://host/",
        "http://host:port/",
        "http://host:99999/",
        "http://host:-1/",
        "http://[::1/",
        "http://[not-an-address]/",
        "http://ho st/",
        "http://user:secret@/",
        "http://user:sec/ret@host/",
        "http://user:sec#ret@host/",
        "http://\N{CARE OF}/",
        "http://:80/",
    ],
)
async def test_a_url_that_cannot_be_used_is_refused(url: str, transport: HttpTransport) -> None:
    with pytest.raises(Refused) as raised:
        await send(transport, url)

    assert str(raised.value).startswith("the URL of 'payments' cannot be used: ")
    assert "sec" not in str(raised.value)
    assert HttpTransport.mistake_in(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://payments",
        "HTTPS://Payments.Internal:8443/events/?a=b#c",
        "http://user:pass%2Fword@host/",
        "http://[::1]:8000/events/",
        "http://10.0.0.1/",
        "https://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example/",
        "http://with_underscore.internal/",
    ],
)
def test_a_url_that_can_be_used_has_no_mistake(url: str) -> None:
    assert HttpTransport.mistake_in(url) is None


# Secrets


def leaks(caplog: pytest.LogCaptureFixture, *values: object) -> list[str]:
    """Return where the word `secret` stands: in what was logged, tracebacks included, or in `values`."""
    formatter = logging.Formatter("%(name)s %(message)s")
    logged = [formatter.format(record) + repr(vars(record)) for record in caplog.records]
    return [text for text in (*logged, *map(repr, values)) if "secret" in text]


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@127.0.0.1:1/",
        "http://user:secret@127.0.0.1:nan/",
        "http://user:s#secret@127.0.0.1/",
        "http://user:secret/@127.0.0.1/",
        "http://user:secret@[::1/",
        "http://user:secret@\N{CARE OF}/",
        "http://user:secret@ho st/",
        "http://secret@/",
        "https://user:secret@127.0.0.1:1/",
        "smtp://user:secret@127.0.0.1/",
    ],
)
def test_a_password_in_a_url_is_told_to_nobody(
    url: str, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fleet(payments=url)

    emissions = [emit("noted", {"n": n}) for n in range(2)]

    assert not any(emission.ok for emission in emissions)
    assert all(emission.results[0].error for emission in emissions)
    assert leaks(caplog, emissions, Destination("payments", url)) == []


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(hangs, id="hangs"),
        pytest.param(closes, id="closes"),
        pytest.param(answers_raw(b"garbage\r\n\r\n"), id="garbage"),
        pytest.param(answers(401, {"detail": "No."}), id="401"),
        pytest.param(answers(302, location="http://user:other@127.0.0.1/"), id="302"),
        pytest.param(answers_raw(b"HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\n"), id="cut"),
    ],
)
def test_a_password_in_a_url_stays_untold_whatever_the_server_does(
    behaviour: Any, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Peer(behaviour) as peer:
        fleet(
            payments=peer.url.replace("://", "://user:secret@") + "?token=secret",
            LIMITS={"ATTEMPT_S": 0.2, "TRIES": 2},
        )

        emission = emit("noted", {"n": 1})

    assert emission.results[0].outcome == "failed"
    assert leaks(caplog, emission) == []


def test_a_password_in_a_url_stays_untold_where_nobody_answers(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with black_hole() as swallows:
        fleet(
            payments=swallows.replace("://", "://user:secret@") + "?token=secret",
            LIMITS={"CONNECT_S": 0.2, "TRIES": 1},
        )

        emission = emit("noted", {"n": 1})

    assert emission.results[0].outcome == "failed"
    assert leaks(caplog, emission) == []


PAYLOAD = {"password": "secret"}


def test_the_payload_is_never_logged(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    payload = PAYLOAD  # by name: the logged stacks quote these very lines
    with Peer(answers(503), answers(400), answers(200)) as peer:
        fleet(payments=peer)

        for _ in range(2):
            emit("noted", payload)
        emit("noted", {**payload, "not JSON": object()})
        emit("noted", {**payload, "not JSON": float("nan")})
        emit("noted", {**payload, "too large": "x" * 300_000})
        emit("noted", [payload])
        assert peer.payloads[0] == payload

    assert caplog.records
    assert leaks(caplog) == []
