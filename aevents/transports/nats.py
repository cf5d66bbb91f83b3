"""`nats://` and `natss://`: JetStream, one stream for all types, one durable consumer for each service and type.

A message is as CloudEvents' binding for NATS has it: `ce-` headers, percent-encoded as on HTTP, besides
`webhook-id`, `webhook-timestamp`, `webhook-signature` and `content-type`; the body is the payload. The event's id
is its `Nats-Msg-Id`, by which the stream drops a second copy. What JetStream has confirmed is as durable as its
`sync_interval` says.

Options (`TRANSPORTS["nats"]`): `PREFIX`; `KEEP_HOURS` (168), `DUPLICATES_S` (120) and `REPLICAS` (1) of a stream
that is not there yet; `ACK_WAIT_S` (30) of a consumer that is not: after which what a replica has not acknowledged
goes to another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
from nats.aio.msg import Msg

from aevents.errors import DeliveryError, Refused, Unavailable
from aevents.transports import nats_connection, tls
from aevents.transports.base import Destination, Wanted
from aevents.transports.broker import BrokerTransport, Outgoing, Source
from aevents.transports.nats_connection import NO_RESPONDERS, Connection, Request, status_of
from aevents.transports.nats_source import NatsSource

_NO_STREAM, _NAME_IN_USE, _TOO_LARGE = 10059, 10058, 10054  # JetStream's own numbers for errors
_NANOSECONDS = 1_000_000_000
_HEADER_LINE = len("NATS/1.0\r\n\r\n")
_STRUCTURED = "application/cloudevents"  # and its formats


class NatsTransport(BrokerTransport):
    """Publishes to the subject of the type, and waits for the stream to confirm; makes the stream if there is none."""

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

    @property
    def stream(self) -> str:
        """The name of the stream: the prefix, in which no dot may stand."""
        return self.prefix.removesuffix(".").replace(".", "_")

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
        homeless = [place for place, each in answers.items() if each and status_of(each) == NO_RESPONDERS]
        if homeless:
            await self._require_stream(connection)
            again = await connection.ask([requests[place] for place in homeless])
            answers.update(zip(homeless, again, strict=True))
        return answers

    async def open(self, place: Destination, wanted: Wanted) -> Source:
        connection = await self._connect(place)
        try:
            await self._require_stream(connection)
            source = NatsSource(connection, self.stream, self.prefix, wanted)
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
        is_encrypted = destination.url.lower().startswith("natss:")
        return await Connection.open(
            destination, await self._contexts.of(destination) if is_encrypted else None
        )

    async def _require_stream(self, connection: Connection) -> None:
        """Make the stream unless it is there; what it is like is then its operator's affair."""
        (found,) = await connection.api((f"STREAM.INFO.{self.stream}", None))
        if _number(found) == _NO_STREAM:
            (found,) = await connection.api((f"STREAM.CREATE.{self.stream}", self._stream_config()))
        if _number(found) == _NAME_IN_USE:  # somebody was quicker
            (found,) = await connection.api((f"STREAM.INFO.{self.stream}", None))
        if "error" in found:
            raise _objection(f"the stream {self.stream!r} cannot be made", found)
        subjects = found["config"].get("subjects") or ()
        if not any(_covers(each, f"{self.prefix}>") for each in subjects):
            raise Unavailable(
                f"the stream {self.stream!r} is there, but does not take {self.prefix}> (see `nats stream edit`)",
                slowly=True,
            )

    def _stream_config(self) -> dict[str, Any]:
        keep_s = 3600 * float(self.options.get("KEEP_HOURS", 168.0))
        window_s = min(keep_s, float(self.options.get("DUPLICATES_S", 120.0)))
        return {
            "name": self.stream,
            "subjects": [f"{self.prefix}>"],
            "storage": "file",
            "retention": "limits",
            "max_age": int(keep_s * _NANOSECONDS),
            "duplicate_window": int(window_s * _NANOSECONDS),
            "num_replicas": int(self.options.get("REPLICAS", 1)),
        }


def _headers(message: Outgoing) -> dict[str, str]:
    headers = {**message.headers, "Nats-Msg-Id": message.id}
    content_type = headers.get("content-type", "")
    if not content_type.startswith(_STRUCTURED):
        headers["ce-datacontenttype"] = content_type  # NATS' binding has it among the attributes
    return headers


def _too_large(request: Request, max_bytes: int) -> Refused | None:
    # The server closes the connection of who sends more, and all that is under way on it is lost.
    headers = request.headers or {}
    size = sum(len(name.encode()) + len(value.encode()) + 4 for name, value in headers.items())
    size += _HEADER_LINE + len(request.body)
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
        return _objection("the stream did not take it", said if isinstance(said, dict) else {})
    return None if "error" not in said else _objection("the stream did not take it", said)


def _objection(what: str, said: dict[str, Any]) -> DeliveryError:
    error = said.get("error") or {}
    text = f"{what}: {error.get('description', 'no reason given')!s:.200} ({error.get('err_code', 0)})"
    if error.get("err_code") == _TOO_LARGE:
        return Refused(text)
    return Unavailable(text, slowly=400 <= error.get("code", 0) < 500)


def _number(said: dict[str, Any]) -> int:
    return int((said.get("error") or {}).get("err_code", 0))


def _covers(pattern: str, wanted: str) -> bool:
    """Tell whether all subjects of `wanted` are among those of `pattern`."""
    has, wants = pattern.split("."), wanted.split(".")
    for place, token in enumerate(has):
        if token == ">":
            return place < len(wants)
        if place >= len(wants) or wants[place] == ">" or token not in ("*", wants[place]):
            return False
    return len(has) == len(wants)
