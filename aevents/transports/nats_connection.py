"""One connection to NATS: requests in, the answer to each out; lost once, it is lost for good.

nats-py's own reconnection is off, as it is silent: whoever used a connection that is lost makes a new one,
and looks again for all that has to be there. JetStream's API is spoken as its reference has it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import nats.errors as errors
import orjson
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from aevents.errors import Unavailable
from aevents.settings import conf
from aevents.transports.base import Destination
from aevents.transports.broker import text_of
from aevents.transports.nats_client import Client

SCHEMES = ("nats", "natss")
NO_RESPONDERS = "503"
_API = "$JS.API"
_PING_EVERY_S, _PINGS = 3, 2  # so that a server that hangs is given up after 9 s
_LOOK_EVERY_S = 1.0


def mistake_in(url: str) -> str | None:
    """Say what is wrong with a URL of NATS, or None."""
    try:
        parts = urlsplit(url)
        hosts = [urlsplit(f"//{host}") for host in _hosts(url)]
        is_whole = all(host.hostname and host.port != 0 and not host.username for host in hosts)
    except ValueError:
        return "it is no URL (what is special in a password must be percent-encoded)"
    if parts.scheme.lower() not in SCHEMES:
        return "it must begin with nats:// or natss://"
    if not is_whole:
        return "it needs a host, or several with commas between them"
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        return "nothing may stand after the host and the port"
    return None


def _hosts(url: str) -> list[str]:
    return urlsplit(url).netloc.rpartition("@")[2].split(",")


@dataclass(frozen=True, slots=True)
class Request:
    """A message that is answered: by a stream, by a consumer, or by JetStream's API."""

    subject: str
    body: bytes = b""
    headers: dict[str, str] | None = None


class _Call:
    """Requests that were sent together, and what has come of them."""

    def __init__(self, count: int, refusals: int) -> None:
        self.answers: list[Msg | None] = [None] * count
        self.left = self.seen_left = count
        self.refusals = refusals  # there had been before
        self.ended = asyncio.get_running_loop().create_future()

    def take(self, place: int, answer: Msg) -> None:
        self.answers[place] = answer
        self.left -= 1
        if self.left == 0:
            self.end()

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class Connection:
    """A connection, and what is waited for on it."""

    def __init__(self) -> None:
        self._client = Client()
        self._calls: set[_Call] = set()
        self._awaited: dict[str, tuple[_Call, int]] = {}
        self._numbers = itertools.count()
        self._trouble: Exception | None = None
        self._refusals = 0
        self._watcher: asyncio.Task[None] | None = None
        self.inbox = ""
        self.when_lost: Callable[[], None] | None = None

    @classmethod
    async def open(cls, destination: Destination, context: ssl.SSLContext | None) -> Connection:
        """Return a connection to one of the servers of `destination`; raises whatever prevents it."""
        connection = cls()
        try:
            await connection._connect(destination.url, context)
        except BaseException as error:
            await connection.drop()
            if isinstance(error, errors.NoServersError) and connection._trouble is not None:
                raise connection._trouble from error
            raise
        return connection

    async def _connect(self, url: str, context: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        is_encrypted = parts.scheme.lower() == "natss"
        self._client.must_be_encrypted = is_encrypted
        user, password = unquote(parts.username or ""), parts.password
        await self._client.connect(
            [f"{'tls' if is_encrypted else 'nats'}://{host}" for host in _hosts(url)],
            name="aevents",
            error_cb=self._on_error,
            closed_cb=self._on_closed,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=math.ceil(conf().LIMITS.CONNECT_S),
            ping_interval=_PING_EVERY_S,
            max_outstanding_pings=_PINGS,
            tls=context,
            token=user if user and password is None else None,
            user=user if password is not None else None,
            password=unquote(password) if password is not None else None,
        )
        self.inbox = self._client.new_inbox()
        await self.subscribe(f"{self.inbox}.answer.*", self._on_answer)
        self._watcher = asyncio.create_task(self._watch())

    @property
    def is_lost(self) -> bool:
        """Tell whether it is of no use any more."""
        return not self._client.is_connected

    @property
    def is_forbidden(self) -> bool:
        """Tell whether the server has refused something that was sent on it; it does not answer that."""
        return self._refusals > 0

    @property
    def max_bytes(self) -> int:
        """How large a message may be with its headers."""
        return self._client.max_payload

    def error(self) -> Unavailable:
        """Return why there is no answer."""
        reason = f": {text_of(self._trouble)}" if self._trouble is not None else ""
        if self.is_lost or not self.is_forbidden:
            return Unavailable(f"the connection is lost{reason}")
        return Unavailable(f"not permitted{reason}", slowly=True)

    async def subscribe(self, subject: str, take: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Have what comes for `subject` taken; how much that may be is the subscriber's affair."""
        return await self._client.subscribe(subject, cb=take, pending_msgs_limit=0, pending_bytes_limit=0)

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Say that no more is wanted; what is on its way is still taken, before the next answer."""
        await self._client.unsubscribe(subscription)

    async def send(self, subject: str, body: bytes = b"", reply: str = "", headers: Any = None) -> None:
        """Send one message; raises `Unavailable` where the connection is lost."""
        await self._sent(self._client.publish(subject, body, reply, headers))

    async def send_to_each(self, subjects: Sequence[str], body: bytes) -> None:
        """Send the same to each of these, which the server has named; raises `Unavailable` as `send` does."""
        if subjects:
            await self._sent(self._client.publish_to_each(subjects, body))

    async def _sent(self, sending: Coroutine[Any, Any, None]) -> None:
        if self.is_lost:
            sending.close()
            raise self.error()
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        cancelled = task.cancelling()
        await sending
        if task.cancelling() > cancelled:  # nats-py keeps it to itself when it waits for the socket
            raise asyncio.CancelledError

    async def ask(self, requests: Sequence[Request]) -> list[Msg | None]:
        """Send all of them, in order, and return the answer to each; None where there will be none."""
        call = _Call(len(requests), self._refusals)
        tokens = [str(next(self._numbers)) for _ in requests]
        self._calls.add(call)
        try:
            for place, (token, each) in enumerate(zip(tokens, requests, strict=True)):
                self._awaited[token] = call, place
                await self.send(each.subject, each.body, f"{self.inbox}.answer.{token}", each.headers)
            if call.left and not self.is_lost:
                await call.ended
        finally:
            self._calls.discard(call)
            for token in tokens:
                self._awaited.pop(token, None)
        return call.answers

    async def _watch(self) -> None:
        """End what will get no answer: nats-py does not always say that it is stuck, nor what was refused."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            for call in list(self._calls):
                if self.is_lost or (self._refusals > call.refusals and call.left == call.seen_left):
                    call.end()
                call.seen_left = call.left

    async def api(self, *requests: tuple[str, Any]) -> list[dict[str, Any]]:
        """Return what JetStream says to these; what it objects to stands in `error`."""
        answers = await self.ask(
            [
                Request(f"{_API}.{each}", b"" if asked is None else orjson.dumps(asked))
                for each, asked in requests
            ]
        )
        found = []
        for answer in answers:
            if answer is None:
                raise self.error()
            if status_of(answer) == NO_RESPONDERS:
                raise Unavailable("JetStream is not enabled there")
            found.append(orjson.loads(answer.data))
        return found

    async def drop(self) -> None:
        """End it; what is waited for on it gets no answer."""
        if self._watcher is not None:
            self._watcher.cancel()
        await self._client.drop()
        self._wake()

    async def _on_answer(self, answer: Msg) -> None:
        call, place = self._awaited.pop(answer.subject.rpartition(".")[2], (None, 0))
        if call is not None:
            call.take(place, answer)

    async def _on_error(self, error: Exception) -> None:
        self._trouble = error
        if "permissions violation" in str(error):
            self._refusals += 1

    async def _on_closed(self) -> None:
        self._wake()

    def _wake(self) -> None:
        for call in self._calls:
            call.end()
        if self.when_lost is not None:
            self.when_lost()


def status_of(message: Msg) -> str:
    """Return the status of a message that the server wrote itself, empty where it is none."""
    return (message.headers or {}).get("Status", "") if not message.data else ""
