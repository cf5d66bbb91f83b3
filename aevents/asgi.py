"""What Django lacks under ASGI: the lifespan, and with `receiver` a short way in for events.

    application = receiver(get_asgi_application())  # in asgi.py

Uvicorn ends its processes by the signal that it got, and no `atexit` callback runs then: with the lifespan
what is owed begins to leave when the server starts, and what was handed over has left, or is stored, before
its process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings as django_settings
from django.urls import NoReverseMatch, get_script_prefix, reverse

from aevents import batch, relay, wire
from aevents.answer import Answer
from aevents.event import Message
from aevents.keeper import keeper
from aevents.receiver import DRAINED_BYTES, receive, refusal_of_length
from aevents.settings import conf

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_NAMES = {name.encode(): name for name in (*wire.HEADERS, "content-length")}
_logger = logging.getLogger("aevents")


def lifespan(application: Application) -> Application:
    """Return `application`, which drains the courier when the server says that it shuts down."""

    async def with_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await application(scope, receive, send)
            return
        while (await receive())["type"] != "lifespan.shutdown":
            keeper.begin()
            await send({"type": "lifespan.startup.complete"})
        # In a thread: this service's own events need the loop for their handlers.
        await asyncio.to_thread(relay.end, conf().LIMITS.EXIT_S)
        await send({"type": "lifespan.shutdown.complete"})

    return with_lifespan


def receiver(application: Application, *, path: str | None = None) -> Application:
    """Return `application` with its `lifespan`, and with events taken before they reach Django's requests.

    What is posted to `path` gets the answers that `aevents.urls` would give there, many times faster: no
    middleware sees it, and no view, and of its body no more is read than `BODY_BYTES` allow. All else is
    the application's. `path` begins with a slash; unless given, it is where `aevents.urls` stand in the
    `ROOT_URLCONF`. Raises `ValueError` for a path that could match nothing.
    """
    if path is not None and not path.startswith("/"):
        raise ValueError(f"path must begin with a slash, and {path!r} does not")
    door = _Door(path)

    async def with_receiver(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and door.is_at(scope):
            await _take(scope, receive, send)
        else:
            await application(scope, receive, send)

    return lifespan(with_receiver)


class _Door:
    """Knows the path where events come in: the one that was given, or where the URLconf has it."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._is_known = path is not None

    def is_at(self, scope: Scope) -> bool:
        if not self._is_known:
            self._find()
        # As Django's own handler finds the path.
        prefix = django_settings.FORCE_SCRIPT_NAME or scope.get("root_path") or ""
        return bool(scope["path"].removeprefix(prefix) == self._path)

    def _find(self) -> None:
        with contextlib.suppress(Exception):  # a broken URLconf: Django says so for every request
            try:
                url = reverse("aevents:receive")
                self._path = "/" + urllib.parse.unquote(url.removeprefix(get_script_prefix()))
            except NoReverseMatch as error:
                _logger.error(
                    "aevents.asgi.receiver finds no place for events in the ROOT_URLCONF (%s): whatever is"
                    " posted goes the way through Django. Include aevents.urls there, without names in its"
                    " path, or say receiver(application, path=...)",
                    error,
                )
            self._is_known = True


async def _take(scope: Scope, receive_more: Receive, send: Send) -> None:
    headers = _headers(scope)
    body = _Body(receive_more)
    answer = refusal_of_length(headers.pop("content-length", ""))
    if answer is None:
        data = await body.read(conf().LIMITS.BODY_BYTES)
        if body.has_left:
            return  # nothing was taken, and nobody waits for an answer
        peer = scope.get("client") or ("",)
        answer = await receive(Message(headers, data), peer=str(peer[0]), at_home=True)
    if answer.status == 413:
        await body.drain()
    await _answer(answer, send)


def _headers(scope: Scope) -> dict[str, str]:
    """Return the headers that are read, repeated ones joined as Django joins them."""
    found: dict[str, str] = {}
    for sent, value in scope["headers"]:
        name = _NAMES.get(sent)
        if name is not None:
            text = value.decode("latin-1")
            found[name] = f"{found[name]},{text}" if name in found else text
    return {name: text for name, text in found.items() if text}


class _Body:
    """A request's body, which comes in pieces. `has_left`: its client broke off."""

    def __init__(self, receive_more: Receive) -> None:
        self._receive_more = receive_more
        self._is_whole = False
        self.has_left = False

    async def read(self, most: int) -> bytes:
        """Return the body, or what is known to be more than `most` bytes of it."""
        data: bytes | bytearray = await self._next()
        while not self._is_whole and len(data) <= most:
            if not isinstance(data, bytearray):  # the rule is one piece, which is not copied
                data = bytearray(data)
            data += await self._next()
        return bytes(data)

    async def drain(self) -> None:
        """Read on and forget, within a bound: see `aevents.views`."""
        forgotten = 0
        while not self._is_whole and forgotten < DRAINED_BYTES:
            forgotten += len(await self._next())

    async def _next(self) -> bytes:
        message = await self._receive_more()
        self.has_left = message["type"] == "http.disconnect"
        self._is_whole = self.has_left or not message.get("more_body")
        piece: bytes = message.get("body", b"")
        return piece


async def _answer(answer: Answer, send: Send) -> None:
    body = answer.body
    headers = [
        (b"content-type", wire.JSON.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"accept-post", batch.OFFER.encode()),
        *((name.encode(), value.encode()) for name, value in answer.headers.items()),
    ]
    with contextlib.suppress(OSError):  # the client has left; what was taken is taken
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
