"""What no proper client sends, over the bytes of the wire, to real servers: bodies, lengths and headers.

No answer is a 500, none is missing, and of what is too large no more is kept than allowed.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aevents import signature, wire
from aevents.event import new_id
from tests.project.notes import database
from tests.servers import COMMANDS, running
from tests.test_wire import event

MIB = 1024 * 1024
SECRET = signature.new_secret()
KEYS = [signature.key_of(SECRET)]
EVENT = b'{"event_type":"ignored","payload":{}}'
HEAD = b"POST /events/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
JSON = b"Content-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
_DEADLINE_S = 60.0  # generous: it ends a test that is broken


@dataclass(frozen=True)
class Server:
    name: str
    address: tuple[str, int]
    mark: str  # in the environment of its processes

    def ask(self, *pieces: bytes | Iterable[bytes]) -> tuple[int, bytes]:
        """Send these bytes; return the first answer's status and what follows its head.

        A server may answer and hang up before all is sent.
        """
        with socket.create_connection(self.address, timeout=_DEADLINE_S) as client:
            try:
                for piece in pieces:
                    for part in [piece] if isinstance(piece, bytes) else piece:
                        client.sendall(part)
            except OSError:
                pass
            answer = b""
            try:
                while part := client.recv(65536):
                    answer += part
            except OSError:
                pass
        found = re.match(rb"HTTP/1\.1 (\d{3}) .*?\r\n\r\n", answer, re.DOTALL)
        assert found, answer[:200]
        return int(found[1]), answer[found.end() :]

    def is_well(self) -> bool:
        return self.ask(HEAD, JSON, b"Content-Length: %d\r\n\r\n" % len(EVENT), EVENT)[0] == 200

    def most_resident_kib(self) -> int:
        """Return the largest memory that its processes had, together."""
        most = 0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found = re.search(r"VmHWM:\s+(\d+)", (folder / "status").read_text())
                    most += int(found[1]) if found else 0
            except OSError:
                continue
        assert most
        return most


@pytest.fixture(scope="module", params=COMMANDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(request.param)
    notes = database.make(folder / "notes.sqlite3")
    log = folder / "server.log"
    env = {"NOTES_DB": str(notes), "SECRETS": json.dumps([SECRET])}
    with running(request.param, settings="tests.project.settings_notes", env=env, log=log) as url:
        host, port = url.removeprefix("http://").strip("/").split(":")
        server = Server(request.param, (host, int(port)), str(notes))
        yield server
        assert server.is_well()
    assert "Traceback" not in log.read_text()


def chunks(body: Iterable[bytes]) -> Iterator[bytes]:
    for piece in body:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def single_bytes(body: bytes, *, after: int = 1) -> bytes:
    """Return the body in chunks of a byte, but for the first `after` bytes, which are one chunk."""
    return b"".join(chunks([body[:after], *(body[n : n + 1] for n in range(after, len(body)))]))


def large(size: int) -> bytes:
    body = b'{"event_type":"ignored","payload":"%b"}'
    return body % (b"x" * (size - len(body) + 2))


# --- bodies and their lengths (35) ---


def test_one_byte_more_than_a_mebibyte_is_too_much(server: Server) -> None:
    for size, status in ((MIB, 200), (MIB + 1, 413)):
        body = large(size)
        assert len(body) == size
        assert server.ask(HEAD, JSON, b"Content-Length: %d\r\n\r\n" % size, body)[0] == status
        assert server.ask(HEAD, JSON, CHUNKED, chunks([body]))[0] == status


def test_a_body_without_a_length_is_none(server: Server) -> None:
    status, answer = server.ask(HEAD, JSON, b"\r\n", EVENT)
    assert status == 400
    assert b"empty" in answer or b"HTTP/1.1" not in answer


@pytest.mark.parametrize("length", [1, 10, len(EVENT) - 1])
def test_of_a_body_that_is_longer_than_it_says_the_rest_is_none(server: Server, length: int) -> None:
    assert server.ask(HEAD, JSON, b"Content-Length: %d\r\n\r\n" % length, EVENT)[0] == 400


@pytest.mark.parametrize("length", [b"-1", b"+37", b"0x25", b"37, 38", b"\xb2", b"9" * 5000])
def test_a_length_that_is_none_is_refused(server: Server, length: bytes) -> None:
    status, _ = server.ask(HEAD, JSON, b"Content-Length: %b\r\n\r\n" % length, EVENT)
    assert 400 <= status < 500


def test_two_lengths_are_never_two_events(server: Server) -> None:
    twice = b"Content-Length: %d\r\nContent-Length: 5\r\n\r\n" % len(EVENT)
    assert 400 <= server.ask(HEAD, JSON, twice, EVENT)[0] < 500
    both = b"Content-Length: 5\r\n" + CHUNKED
    assert server.ask(HEAD, JSON, both, chunks([EVENT]))[0] < 500


def test_an_event_may_come_byte_by_byte(server: Server) -> None:
    assert server.ask(HEAD, JSON, CHUNKED, single_bytes(EVENT))[0] == 200
    assert server.ask(HEAD, JSON, CHUNKED, chunks(EVENT[n : n + 1] for n in range(len(EVENT))))[0] == 200


def test_one_byte_too_many_is_too_much_byte_by_byte_as_well(server: Server) -> None:
    # Its last eighth: a chunk costs Granian 40 to 60 µs, and a million of them a minute.
    body = large(MIB + 1)
    assert server.ask(HEAD, JSON, CHUNKED, single_bytes(body, after=len(body) * 7 // 8))[0] == 413


def test_of_a_body_without_end_little_is_kept_in_memory(server: Server) -> None:
    # Given a server that has seen a body of the largest size
    body = large(MIB)
    assert server.ask(HEAD, JSON, CHUNKED, chunks([body]))[0] == 200
    before = server.most_resident_kib()
    # When 64 MiB come
    status, _ = server.ask(HEAD, JSON, CHUNKED, chunks(b"x" * MIB for _ in range(64)))
    # Then it is refused, and was never held
    assert status == 413
    assert server.most_resident_kib() - before < 16 * 1024


# --- headers (39, 44) ---


def headers_of(sent: dict[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in sent.items()).encode("latin-1")


def signed() -> tuple[dict[str, str], bytes]:
    message = wire.encode(event(id=new_id(), type="ignored"))
    return {**wire.stamp(message, KEYS), "content-length": str(len(message.body))}, message.body


@pytest.mark.parametrize("name", wire.HEADERS)
def test_a_repeated_header_is_never_a_500(server: Server, name: str) -> None:
    sent, body = signed()
    for value in (sent.get(name, "x"), "", "\xff", "x"):
        more = f"{name}: {value}\r\n".encode("latin-1") * 2
        status, answer = server.ask(HEAD, headers_of(sent), more, b"\r\n", body)
        assert status in (200, 400, 401, 415), answer


def test_the_signature_twice_is_none_of_ours(server: Server) -> None:
    sent, body = signed()
    assert server.ask(HEAD, headers_of(sent), b"\r\n", body)[0] == 200
    again = b"webhook-signature: %b\r\n" % sent["webhook-signature"].encode()
    status, answer = server.ask(HEAD, headers_of(sent), again, b"\r\n", body)
    assert (status, b"webhook-signature is by none" in answer) == (401, True)


@pytest.mark.parametrize("spoof", ["webhook_signature", "Webhook_Signature", "WEBHOOK_SIGNATURE"])
def test_a_header_with_an_underscore_is_not_the_one_with_a_dash(server: Server, spoof: str) -> None:
    """CVE-2026-3902: under WSGI both have one name."""
    sent, body = signed()
    # A wrong one spoils nothing, before the right one and after it
    for more in (headers_of({spoof: "v1,x", **sent}), headers_of({**sent, spoof: "v1,x"})):
        assert server.ask(HEAD, more, b"\r\n", body)[0] == 200
    # And the right one counts for nothing: what is unsigned is taken here, with an id of its own
    sent, body = signed()
    renamed = {name.replace("webhook-", "webhook_"): value for name, value in sent.items()}
    del renamed["ce-id"]
    status, answer = server.ask(HEAD, headers_of(renamed), b"\r\n", body)
    assert status == 200
    is_taken = sent["webhook-id"].encode() in answer
    # Granian's WSGI alone takes one for the other, before Django sees it: nothing is believed for that
    assert is_taken is (server.name == "granian-wsgi")
    renamed["content-length"] = str(len(body) + 1)
    assert server.ask(HEAD, headers_of(renamed), b"\r\n", body, b" ")[0] == (401 if is_taken else 200)
