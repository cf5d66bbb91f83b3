"""The project asked directly, without a server: one request into Django's ASGI or WSGI handler, or into
the short way before it.

Django's own test clients always send a Content-Length and exempt themselves from CSRF; a server does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished, request_started
from django.db import close_old_connections

from aevents.asgi import receiver

THROUGH_DJANGO = ("asgi", "wsgi")
WAYS = (*THROUGH_DJANGO, "short")
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """What came back; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


def ask(
    way: str,
    body: bytes | str = b"",
    headers: Mapping[str, str] = JSON,
    *,
    method: str = "POST",
    path: str = "/events/",
    chunked: bool = False,
    peer: str = "192.0.2.1",
) -> Reply:
    """Send one request and return the reply. `chunked`: without a Content-Length."""
    data = body.encode() if isinstance(body, str) else body
    sent = {name.lower(): value for name, value in headers.items()}
    if chunked:
        sent["transfer-encoding"] = "chunked"
    else:
        sent.setdefault("content-length", str(len(data)))
    if way in ("asgi", "short"):
        application = ASGIHandler() if way == "asgi" else receiver(ASGIHandler())
        return asyncio.run(ask_asgi(data, sent, method=method, path=path, peer=peer, to=application))
    return ask_wsgi(data, sent, method=method, path=path, peer=peer)


async def ask_asgi(
    body: bytes,
    headers: Mapping[str, str],
    *,
    method: str = "POST",
    path: str = "/events/",
    peer: str = "192.0.2.1",
    root_path: str = "",
    to: Any = None,
) -> Reply:
    """Send one request to an application, Django's ASGI handler say, on the running loop, in pieces."""
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": root_path,
        "query_string": query.encode(),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
        "client": (peer, 40000),
        "server": ("testserver", 80),
    }
    pieces = [body[n : n + 65536] for n in range(0, len(body), 65536)] or [b""]
    coming = [
        {"type": "http.request", "body": piece, "more_body": n < len(pieces)}
        for n, piece in enumerate(pieces, 1)
    ]
    sent: list[dict[str, Any]] = []
    is_answered = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not coming:
            await is_answered.wait()  # the client stays until it has its answer
            return {"type": "http.disconnect"}
        return coming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            is_answered.set()

    await (to or ASGIHandler())(scope, receive, send)
    start = next(message for message in sent if message["type"] == "http.response.start")
    return Reply(
        start["status"],
        {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]},
        b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body"),
    )


def ask_wsgi(
    body: bytes | io.BytesIO,
    headers: Mapping[str, str],
    *,
    method: str = "POST",
    path: str = "/events/",
    peer: str = "192.0.2.1",
) -> Reply:
    """Send one request to Django's WSGI handler in this thread."""
    path, _, query = path.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": peer,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body) if isinstance(body, bytes) else body,
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in headers.items():
        key = name.upper().replace("-", "_")
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
    if "transfer-encoding" in headers:
        environ["wsgi.input_terminated"] = True  # as gunicorn and others say of a chunked body
    started: list[Any] = []

    def start_response(status: str, answer_headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        started.extend((status, answer_headers))

    with _connections_left_alone():
        response: Iterable[bytes] = WSGIHandler()(environ, start_response)
        try:
            content = b"".join(response)
        finally:
            response.close()  # type: ignore[attr-defined]  # a Django response has it
    status, answer_headers = started
    return Reply(int(status.split()[0]), {name.lower(): value for name, value in answer_headers}, content)


@contextlib.contextmanager
def _connections_left_alone() -> Iterator[None]:
    """As Django's own test client does: this thread's connection is the test's, and in memory."""
    signals = (request_started, request_finished)
    for signal in signals:
        signal.disconnect(close_old_connections)
    try:
        yield
    finally:
        for signal in signals:
            signal.connect(close_old_connections)
