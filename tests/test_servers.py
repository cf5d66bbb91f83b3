"""A service under real servers, as processes: events by raw HTTP, rows in an SQLite file."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.project.notes import database
from tests.servers import COMMANDS, running

JSON = {"content-type": "application/json"}
MIB = 1024 * 1024
_DEADLINE_S = 15.0


@dataclass(frozen=True)
class Service:
    url: str
    notes: Path
    log: Path
    failures: list[str] = field(default_factory=list)  # of handlers, that were asked for

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    def post(
        self,
        body: bytes | list[bytes],
        headers: dict[str, str] = JSON,
        *,
        method: str = "POST",
    ) -> tuple[int, dict[str, str], dict[str, str]]:
        """Return status, content and headers. A list of pieces is sent chunked."""
        connection = http.client.HTTPConnection(*self.address, timeout=_DEADLINE_S)
        try:
            pieces = iter(body) if isinstance(body, list) else body
            connection.request(method, "/events/", pieces, headers, encode_chunked=isinstance(body, list))
            response = connection.getresponse()
            content = json.loads(response.read())
            return response.status, content, {k.lower(): v for k, v in response.getheaders()}
        finally:
            connection.close()


@pytest.fixture(scope="module", params=COMMANDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp(request.param)
    notes = database.make(folder / "notes.sqlite3")
    log = folder / "server.log"
    settings = "tests.project.settings_notes"
    with running(request.param, settings=settings, env={"NOTES_DB": str(notes)}, log=log) as url:
        service = Service(url, notes, log)
        yield service
    # Of each handler that failed, as it was to, there is a traceback; nothing else went wrong.
    lines = log.read_text().splitlines()
    assert len([line for line in lines if line.startswith("Traceback")]) == len(service.failures)
    assert not [line for line in lines if "never awaited" in line or "unhandled" in line.lower()]


@pytest.fixture
def service(server: Service) -> Service:
    """The running server with no notes in its database."""
    database.clear(server.notes)
    return server


def noted(n: int) -> bytes:
    return b'{"event_type":"noted","payload":{"n":%d}}' % n


def eventually(is_so: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + _DEADLINE_S
    while not is_so():
        assert time.monotonic() < ends, f"not within {_DEADLINE_S} s: {what}"
        time.sleep(0.01)


def test_an_event_reaches_a_sync_and_an_async_handler_which_both_write_rows(service: Service) -> None:
    status, content, headers = service.post(noted(1), {**JSON, "webhook-id": "one"})
    assert (status, content) == (200, {"id": "one", "status": "handled"})
    assert headers["content-type"] == "application/json"
    assert database.texts(service.notes) == ["async 1", "sync 1"]


def test_the_same_event_again_writes_nothing(service: Service) -> None:
    answers = [service.post(noted(2), {**JSON, "webhook-id": "two"}) for _ in range(3)]
    assert [content["status"] for _, content, _ in answers] == ["handled", "duplicate", "duplicate"]
    assert database.texts(service.notes) == ["async 2", "sync 2"]


def test_20_events_at_once_are_all_handled(service: Service) -> None:
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda n: service.post(noted(n)), range(20)))
    assert [status for status, _, _ in answers] == [200] * 20
    assert database.texts(service.notes) == sorted(
        f"{kind} {n}" for kind in ("sync", "async") for n in range(20)
    )


def test_no_handler_leaves_a_connection_to_the_database_behind(service: Service) -> None:
    # Given a service that was busy
    with ThreadPoolExecutor(8) as threads:
        assert {status for status, _, _ in threads.map(lambda n: service.post(noted(n)), range(16))} == {200}
    # When one more event has been handled, in a thread or on the loop
    for kind in (b"sync", b"async"):
        assert service.post(b'{"event_type":"noted-%b","payload":{"n":7}}' % kind)[0] == 200
        # Then nobody has the file open any more
        eventually(lambda: not database.is_open(service.notes), "the database is closed")
    assert {"sync 7", "async 7"} <= set(database.texts(service.notes))


def test_what_a_failing_handler_wrote_is_rolled_back_and_the_emitter_is_told_to_come_again(
    service: Service,
) -> None:
    service.failures.append("noted-badly")
    status, content, _ = service.post(b'{"event_type":"noted-badly","payload":{}}')
    assert status == 503
    assert content["detail"] == "These handlers failed: tests.project.notes.events.write_badly"
    assert database.texts(service.notes) == []


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_chunked_event_is_taken(service: Service, pieces: int) -> None:
    body = noted(3)
    size = -(-len(body) // pieces)
    status, content, _ = service.post([body[n : n + size] for n in range(0, len(body), size)])
    assert (status, content["status"]) == (200, "handled")


BAD = {
    "nothing": (400, b"", JSON),
    "not JSON": (400, b"{", JSON),
    "UTF-16": (400, noted(1).decode().encode("utf-16"), JSON),
    "100000 brackets": (400, b"[" * 100_000, JSON),
    "nested deeply": (400, b'{"event_type": "a", "payload": ' + b"[" * 500 + b"]" * 500 + b"}", JSON),
    "gzip": (415, b"\x1f\x8b", {**JSON, "content-encoding": "gzip"}),
    "a form": (415, b"a=1", {"content-type": "application/x-www-form-urlencoded"}),
    "over 1 MiB": (413, b'{"event_type":"a","payload":"' + b"x" * MIB + b'"}', JSON),
}


@pytest.mark.parametrize("chunked", [False, True], ids=["with length", "chunked"])
def test_bad_input_gets_the_right_4xx(service: Service, chunked: bool) -> None:
    for case, (expected, body, headers) in BAD.items():
        pieces = [body[n : n + 50_000] for n in range(0, len(body), 50_000)]
        status, content, answer_headers = service.post(pieces if chunked else body, headers)
        assert (case, status) == (case, expected)
        assert answer_headers["content-type"] == "application/json"
        assert content["detail"]
    # And the server is as well as before
    assert service.post(noted(4))[1]["status"] == "handled"


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "DELETE"])
def test_a_wrong_method_gets_405(service: Service, method: str) -> None:
    status, content, headers = service.post(b"", method=method)
    assert (status, headers["allow"]) == (405, "POST")
    assert content["detail"]


@pytest.mark.parametrize("header", [b"", b"Content-Length: 0\r\n"], ids=["without length", "length 0"])
def test_a_request_without_a_body_is_answered_at_once(service: Service, header: bytes) -> None:
    with socket.create_connection(service.address, timeout=_DEADLINE_S) as client:
        client.sendall(
            b"POST /events/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\n%b\r\n" % header
        )
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"The body is empty."' in answer


def test_a_client_that_hangs_up_does_not_stop_the_handler(service: Service) -> None:
    # Given a client that posts an event whose handler takes its time
    body = b'{"event_type":"noted-slowly","payload":{}}'
    with socket.create_connection(service.address, timeout=_DEADLINE_S) as client:
        client.sendall(
            b"POST /events/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Webhook-Id: slow\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        eventually(lambda: "begun" in database.texts(service.notes), "the handler has begun")
        assert database.is_open(service.notes)  # the test of closed connections would see it
    # When it has hung up, and the server has had the time to notice: it has answered another one since
    assert service.post(noted(5))[0] == 200
    database.write(service.notes, "go on")
    # Then the handler comes to its end
    eventually(lambda: "ended" in database.texts(service.notes), "the handler has ended")
    # And the event counts as handled: sent again, it starts nothing
    assert service.post(body, {**JSON, "webhook-id": "slow"})[0] == 200
    assert database.texts(service.notes).count("begun") == 1
