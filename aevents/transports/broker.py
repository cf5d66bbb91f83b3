"""What the transports of all brokers share: events in, published messages out; and what a broker holds, taken in.

A broker answers for itself: what it has confirmed is delivered. Each broker's own module knows how to publish,
and has a `Source` for what it brings.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import orjson

from aevents import cloudevents, retry, wire
from aevents.answer import Answer, Receipt
from aevents.errors import DeliveryError, Refused
from aevents.event import Event, Message, pattern
from aevents.settings import conf
from aevents.transports import topics
from aevents.transports.base import Brought, Destination, Take, Transport, Wanted

T = TypeVar("T")
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0  # before what is not owned is taken again
_GRACE_S = 5.0  # for what is being taken when the end is asked for
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


@dataclass(slots=True, eq=False)
class Held:
    """A message that a broker has given out and not been told to forget. `handle` is the source's own."""

    message: Message
    handle: Any = None
    is_again: bool = False

    def brought(self) -> Brought:
        """Return what is shown of it to who takes it."""
        return Brought(self.message, self.is_again)


class Source(ABC):
    """What a broker holds for one group. All of it raises `Unavailable` where the broker is lost."""

    #: How often it is told that messages are still being worked on; None: it need not be.
    keep_every_s: float | None = None
    #: May it be asked for the next messages while the last ones are being taken?
    can_fetch_ahead: bool = True

    @abstractmethod
    async def fetch(self, at_most: int) -> Sequence[Held]:
        """Return what is there, in order, as soon as there is something; or nothing, after a second or so."""
        raise NotImplementedError

    @abstractmethod
    async def acknowledge(self, held: Sequence[Held]) -> None:
        """Have these forgotten: returns when they need not be brought again."""
        raise NotImplementedError

    async def keep(self, held: Sequence[Held]) -> None:
        """Say that these are still being worked on, so that nobody else is given them."""
        return

    async def release(self, held: Sequence[Held]) -> None:
        """Let others have these at once, as this replica ends."""
        return

    async def close(self) -> None:
        """Close it; what was not acknowledged is brought again, to whoever is there."""
        return


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
        """Publish all of them, in order; return, once the broker has confirmed or refused each, how each fared.

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


async def pump(source: Source, take: Take) -> None:
    """Bring what `source` holds to `take`, batch by batch in order, until cancelled or the source is lost.

    When it is cancelled, what is being taken comes to its end and is acknowledged, for some seconds.
    """
    ahead: asyncio.Task[Sequence[Held]] | None = None
    pending: Sequence[Held] = ()
    try:
        while True:
            pending = await (ahead or _fetch(source))
            ahead = asyncio.ensure_future(_fetch(source)) if source.can_fetch_ahead and pending else None
            pause_s = _PAUSE_S
            while pending:
                pending = await _finished(_taken(source, take, pending))
                if pending:
                    await _kept(source, pending, asyncio.sleep(pause_s * random.uniform(0.5, 1.0)))  # noqa: S311
                    pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
    finally:
        left = [*pending, *await _last_of(ahead)]
        if left:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_GRACE_S):
                    await source.release(left)


async def _fetch(source: Source) -> Sequence[Held]:
    return await source.fetch(int(conf().LIMITS.BATCH))


async def _last_of(ahead: asyncio.Task[Sequence[Held]] | None) -> Sequence[Held]:
    """Return what was fetched ahead and will not be taken."""
    if ahead is None:
        return ()
    ahead.cancel()
    with contextlib.suppress(Exception, asyncio.CancelledError):
        return await ahead
    return ()


async def _taken(source: Source, take: Take, held: Sequence[Held]) -> Sequence[Held]:
    """Have these taken, and those that are owned forgotten; return the others."""
    answers: Sequence[Answer] = await _kept(source, held, take([each.brought() for each in held]))
    owned = [each for each, answer in zip(held, answers, strict=True) if 200 <= answer.status < 300]
    if owned:
        await source.acknowledge(owned)
    if len(owned) == len(held):
        return ()
    return [each for each, answer in zip(held, answers, strict=True) if not 200 <= answer.status < 300]


async def _kept(source: Source, held: Sequence[Held], work: Awaitable[T]) -> T:
    """Await `work`; tell the broker meanwhile that `held` is in good hands."""
    every_s = source.keep_every_s
    if every_s is None:
        return await work
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=every_s))[0]:
            await source.keep(held)
        return task.result()
    finally:
        if not task.done():
            task.cancel()


async def _finished(work: Awaitable[T]) -> T:
    """Await `work`; where that is cancelled, give it some seconds to end first."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=_GRACE_S)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise


# Headers where they are not those of HTTP: CloudEvents' other bindings write attributes as they are


def plain(headers: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return HTTP's headers for a binding whose attributes begin with `prefix` and are not percent-encoded."""
    return {
        (prefix + name[3:] if name.startswith("ce-") else name): (
            (wire.unquote(value) or value) if name.startswith("ce-") else value
        )
        for name, value in headers.items()
    }


def as_http(headers: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return what `plain` had made of HTTP's headers, or a foreign sender's of the same binding."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        name = name.lower() if not name.startswith(prefix) else "ce-" + name[len(prefix) :].lower()
        if name in _READ:
            found[name] = wire.quote(value) if name.startswith("ce-") else value
    return found


_READ = frozenset(wire.HEADERS)


def is_wanted(event_type: str, wanted: Wanted) -> bool:
    """Tell whether a type is among those that are wanted."""
    return event_type in wanted.types or any(pattern(text).fullmatch(event_type) for text in wanted.patterns)
