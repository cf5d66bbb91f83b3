"""What the transports of all brokers share: events in, published messages out.

A broker answers for itself: what it has confirmed is delivered. Each broker's own module knows how to
publish, and has a `Source` for what it brings.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import orjson

from aevents import cloudevents, retry, wire
from aevents.answer import Receipt
from aevents.errors import DeliveryError, Refused
from aevents.event import Event, Message
from aevents.settings import conf
from aevents.transports import topics
from aevents.transports.base import Destination, Take, Transport, Wanted
from aevents.transports.sources import Source, pump

T = TypeVar("T")
_logger = logging.getLogger("aevents")
_GRACE_S = 5.0
_UNKNOWN = "the message names no event type"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message on its way into a broker: `headers` are those of HTTP, stamped and signed."""

    id: str
    type: str
    topic: str
    headers: Mapping[str, str]
    body: bytes
    key: str | None


class BrokerTransport(Transport):
    """Sends each event as one message to its topic, and brings what a group of a service wants.

    Options of every broker: `PREFIX`, which stands before each type in names within the broker.
    """

    can_send_batches = True
    can_listen = True
    is_persistent = True
    has_groups = True
    schemes: ClassVar[tuple[str, ...]]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.prefix: str = options.get("PREFIX", topics.PREFIX)
        self._mistake = topics.mistake_in_prefix(self.prefix)

    # What each broker knows

    @abstractmethod
    async def publish(
        self, destination: Destination, messages: Sequence[Outgoing]
    ) -> Sequence[DeliveryError | None]:
        """Publish all of them, in order; return how each fared, once the broker has confirmed or refused it.

        What is said of all of them may be raised, whatever it is: `error_of` maps it.
        """
        raise NotImplementedError

    @abstractmethod
    async def open(self, place: Destination, wanted: Wanted) -> Source:
        """Make what is not there yet, and return the source of what `wanted` names."""
        raise NotImplementedError

    def error_of(self, error: Exception) -> DeliveryError:
        """Return what a foreign error means; its text must repeat no password."""
        return retry.unreachable(text_of(error), timed_out=isinstance(error, TimeoutError))

    # What is the same for all

    async def send(self, destination: Destination, message: Message) -> Receipt:
        (found,) = await self._publish(destination, [message])
        if isinstance(found, DeliveryError):
            raise found
        return found

    def takes_batches(self, destination: Destination) -> bool:
        return True

    async def send_batch(
        self, destination: Destination, events: Sequence[Event]
    ) -> list[Receipt | DeliveryError]:
        encode = cloudevents.encode if destination.format == cloudevents.FORMAT else wire.encode
        return await self._publish(destination, [encode(event) for event in events])

    async def _publish(
        self, destination: Destination, messages: Sequence[Message]
    ) -> list[Receipt | DeliveryError]:
        self._require_sense(destination)
        found: list[Receipt | DeliveryError] = [Receipt()] * len(messages)
        outgoing, places = [], []
        for place, message in enumerate(messages):
            try:
                outgoing.append(self._outgoing(destination, message))
                places.append(place)
            except DeliveryError as error:
                found[place] = error
        if outgoing:
            errors = await self._mapped(self._in_time(self.publish(destination, outgoing)))
            for place, each in zip(places, errors, strict=True):
                if each is not None:
                    found[place] = each
        return found

    async def listen(self, place: Destination, wanted: Wanted, take: Take) -> None:
        self._require_sense(place)
        source = await self._mapped(self._in_time(self.open(place, wanted)))
        count = len(wanted.types) + len(wanted.patterns)
        _logger.info("Listening to %s as %s, for %d event types", place.name, wanted.group, count)
        try:
            await self._mapped(pump(source, take))
        finally:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_GRACE_S):
                    await source.close()

    def _require_sense(self, destination: Destination) -> None:
        mistake = self._mistake or self.mistake_in(destination.url)
        if mistake is not None:
            raise Refused(f"the URL of {destination.name!r} cannot be used: {mistake}")

    def _outgoing(self, destination: Destination, message: Message) -> Outgoing:
        headers = message.headers
        event_type, key = headers.get("ce-type"), headers.get("ce-partitionkey")
        if event_type is not None:
            event_type, key = wire.unquote(event_type), None if key is None else wire.unquote(key)
        else:  # structured
            attributes = orjson.loads(message.body)
            event_type, key = attributes.get("type"), attributes.get("partitionkey")
        if event_type is None:
            raise Refused(_UNKNOWN)
        topic = topics.topic_of(event_type, self.prefix)
        stamped = wire.stamp(message, destination.keys)
        return Outgoing(headers["webhook-id"], event_type, topic, stamped, message.body, key)

    async def _in_time(self, work: Awaitable[T]) -> T:
        limit_s = conf().LIMITS.ATTEMPT_S
        try:
            async with asyncio.timeout(limit_s):
                return await work
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {limit_s:g} s") from error

    async def _mapped(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except DeliveryError:
            raise
        except Exception as error:
            raise self.error_of(error) from error


def text_of(error: BaseException) -> str:
    """Return an error in one short printable line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}".removesuffix(": ")
