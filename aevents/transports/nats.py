"""`nats://` and `natss://`: JetStream, one stream for all, one durable consumer for each service and type.

A message is as CloudEvents' binding for NATS has it: headers `ce-id`, `ce-type`, ..., percent-encoded as on
HTTP, besides `webhook-id`, `webhook-timestamp`, `webhook-signature` and `content-type`. The event's id is its
`Nats-Msg-Id`, by which the stream drops a second copy. What JetStream has confirmed is as durable as the
server's `sync_interval` says.

Options (`TRANSPORTS["nats"]`): `PREFIX`; of a stream that is not there yet `KEEP_HOURS` (168), `DUPLICATES_S`
(120) and `REPLICAS` (1); of a consumer that is not `ACK_WAIT_S` (30), after which what a replica has not
acknowledged goes to another.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any

import orjson
from nats.aio.msg import Msg

from aevents.errors import DeliveryError, Refused, Unavailable
from aevents.transports import nats_connection, tls
from aevents.transports.base import Destination, Wanted
from aevents.transports.broker import BrokerTransport, Outgoing
from aevents.transports.nats_connection import NO_RESPONDERS, Connection, Request, status_of
from aevents.transports.nats_places import objection, require_stream
from aevents.transports.nats_source import NatsSource
from aevents.transports.sources import Source

_PAUSES_S = (0.0, 0.05, 0.2, 0.5)  # a stream that somebody has just made takes its subjects a moment later
_HEADER_LINE = len("NATS/1.0\r\n\r\n")
_STRUCTURED = "application/cloudevents"  # and its formats


class NatsTransport(BrokerTransport):
    """Publishes to the subject of the type, and waits until the stream has confirmed it."""

    schemes = nats_connection.SCHEMES
    drops_duplicates = True
    can_replay = True
    has_wildcards = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self._mistake is None and not self.prefix:
            self._mistake = "PREFIX must not be empty: it names the stream"
        self._connections: dict[Destination, Connection] = {}
        self._connecting: dict[Destination, asyncio.Lock] = {}
        self._contexts = tls.Contexts()

    @classmethod
    def mistake_in(cls, url: str) -> str | None:
        return nats_connection.mistake_in(url)

    async def publish(
        self, destination: Destination, messages: Sequence[Outgoing]
    ) -> Sequence[DeliveryError | None]:
        connection = await self._connection(destination)
        found: list[DeliveryError | None] = [None] * len(messages)
        requests: dict[int, Request] = {}
        for place, message in enumerate(messages):
            request = Request(message.topic, message.body, _headers(message))
            found[place] = _too_large(request, connection.max_bytes)
            if found[place] is None:
                requests[place] = request
        answers = await self._answers(connection, requests)
        for place, answer in answers.items():
            found[place] = connection.error() if answer is None else _said(answer)
        return found

    async def _answers(self, connection: Connection, requests: dict[int, Request]) -> dict[int, Msg | None]:
        """Return what the stream says of each; where there is none, it is made first."""
        answers = dict(zip(requests, await connection.ask(list(requests.values())), strict=True))
        for pause_s in _PAUSES_S:
            homeless = [place for place, each in answers.items() if each and status_of(each) == NO_RESPONDERS]
            if not homeless:
                break
            await require_stream(connection, self.prefix, self.options)
            await asyncio.sleep(pause_s)
            again = await connection.ask([requests[place] for place in homeless])
            answers.update(zip(homeless, again, strict=True))
        return answers

    async def open(self, place: Destination, wanted: Wanted) -> Source:
        connection = await self._connect(place)
        try:
            await require_stream(connection, self.prefix, self.options)
            source = NatsSource(connection, self.prefix, wanted)
            await source.begin(float(self.options.get("ACK_WAIT_S", 30.0)))
        except BaseException:
            await connection.drop()
            raise
        return source

    async def close(self) -> None:
        for each in self._connections.values():
            await each.drop()
        self._connections.clear()
        self._contexts.close()

    def error_of(self, error: Exception) -> DeliveryError:
        found = super().error_of(error)
        if isinstance(found, Unavailable) and "authorization violation" in str(error).lower():
            found.slowly = True
        return found

    async def _connection(self, destination: Destination) -> Connection:
        """Return the connection that is published on, a new one where it is lost."""
        found = self._connections.get(destination)
        if found is not None and not found.is_lost:
            return found
        async with self._connecting.setdefault(destination, asyncio.Lock()):
            found = self._connections.get(destination)
            if found is not None and found.is_lost:
                del self._connections[destination]
                await found.drop()
                found = None
            if found is None:
                found = self._connections[destination] = await self._connect(destination)
            return found

    async def _connect(self, destination: Destination) -> Connection:
        context: ssl.SSLContext | None = None
        if destination.ca or destination.cert:
            context = await self._contexts.of(destination)
        elif destination.url.lower().startswith("natss:"):
            context = await asyncio.to_thread(
                ssl.create_default_context
            )  # it reads the system's certificates
        return await Connection.open(destination, context)


def _headers(message: Outgoing) -> dict[str, str]:
    headers = {**message.headers, "Nats-Msg-Id": message.id}
    content_type = headers.get("content-type", "")
    if not content_type.startswith(_STRUCTURED):
        headers["ce-datacontenttype"] = content_type  # NATS' binding has it among the attributes
    return headers


def _too_large(request: Request, max_bytes: int) -> Refused | None:
    # The server closes the connection of who sends more, and all that is under way on it is lost.
    headers = request.headers or {}
    size = _HEADER_LINE + len(request.body)
    if size + sum(4 + 4 * len(name) + 4 * len(value) for name, value in headers.items()) <= max_bytes:
        return None  # whatever its characters are
    size += sum(4 + len(name.encode()) + len(value.encode()) for name, value in headers.items())
    if size <= max_bytes:
        return None
    return Refused(f"the message has {size} bytes with its headers, and NATS takes {max_bytes} (max_payload)")


def _said(answer: Msg) -> DeliveryError | None:
    """Return what an answer to a message means: it is stored, or an error for this one alone."""
    if status_of(answer) == NO_RESPONDERS:
        return Unavailable("no stream takes it")
    try:
        said = orjson.loads(answer.data)
    except ValueError:
        return Unavailable("somebody other than a stream answered")
    if not isinstance(said, dict) or "stream" not in said:
        return objection("the stream did not take it", said if isinstance(said, dict) else {})
    return None if "error" not in said else objection("the stream did not take it", said)
