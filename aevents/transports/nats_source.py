"""What JetStream holds for one service: pulled from its durable consumers, and acknowledged there.

There is a consumer for each type and each pattern, so that one that is new to a service brings what was sent
of it before, and replicas that do not know it yet let nothing of it go. At a pattern's comes everything, and
what does not belong to it is acknowledged unseen. One request is open at each: for a single message where
nothing comes, for a share of a batch where there is much.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from aevents import cloudevents, wire
from aevents.errors import Unavailable
from aevents.event import Message, pattern
from aevents.transports import topics
from aevents.transports.base import Wanted
from aevents.transports.nats_connection import NO_RESPONDERS, Connection, Request, status_of
from aevents.transports.nats_places import consumer_of, from_before, require_consumers, stream_of
from aevents.transports.sources import Held, Source, is_wanted

_WAIT_S = 1.0
_EXPIRES_S = 10.0  # until a request that found nothing is made again
_CONFIRMED_S = 10.0  # until what was acknowledged is taken for lost
_LOST_S = 5.0  # after that: the consumer is not there any more, and nobody said so
_SOON_S, _GROWS, _MOST = 1.0, 8, 4096  # a request that is filled so soon lets the next one grow
_NANOSECONDS = 1_000_000_000
_NAK, _IN_PROGRESS = b"-NAK", b"+WPI"
_READ = frozenset(wire.HEADERS)


@dataclass(slots=True, eq=False)
class _Consumer:
    name: str
    pattern: str = ""  # empty where it is a type's
    wish: int = 1  # what to ask for, by what the last request brought
    open: int = 0  # what is still to come of the request that is open
    turn: int = 0
    asked_at: float = 0.0
    rests_until: float = 0.0

    def took_one(self) -> None:
        """Count what has come; what is quickly there was not all that there is."""
        self.open = max(0, self.open - 1)
        if self.open == 0:
            self.wish = min(_GROWS * self.wish, _MOST) if time.monotonic() < self.asked_at + _SOON_S else 1


class NatsSource(Source):
    """The consumers of one group. It keeps by itself all that it has, also what nobody has asked for yet."""

    def __init__(self, connection: Connection, prefix: str, wanted: Wanted) -> None:
        self._connection = connection
        self._stream = stream_of(prefix)
        self._prefix = prefix
        self._wanted = wanted
        self._types: set[str] = set(wanted.types)
        self._patterns: list[str] = []  # of other versions, too
        self._consumers: dict[str, _Consumer] = {}
        self._order: list[_Consumer] = []
        self._come: deque[Held] = deque()
        self._given_out: dict[str, None] = {}  # where each message that is not acknowledged is answered
        self._has_changed = asyncio.Event()
        self._failure: Exception | None = None
        self._subscription: Subscription | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def begin(self, ack_wait_s: float) -> None:
        """Make the consumers that are not there, and begin to listen."""
        connection, group = self._connection, self._wanted.group
        every = {*self._wanted.patterns}
        if self._wanted.patterns:
            types, patterns = await from_before(connection, self._stream, self._prefix, self._wanted)
            self._types |= types
            every |= patterns
        self._patterns = sorted(every)
        filters = {consumer_of(group, each): topics.topic_of(each, self._prefix) for each in self._types}
        named = {consumer_of(group, each, is_pattern=True): each for each in self._patterns}
        filters.update(dict.fromkeys(named, f"{self._prefix}>"))
        ack_wait_s = await require_consumers(connection, self._stream, filters, named, ack_wait_s)
        self._order = [_Consumer(name, named.get(name, "")) for name in filters]
        self._consumers = {each.name: each for each in self._order}
        connection.when_lost = self._has_changed.set
        self._subscription = await connection.subscribe(f"{connection.inbox}.pull.*.*", self._on_message)
        self._keeper = asyncio.create_task(self._keep_all(ack_wait_s / 3))

    async def fetch(self, at_most: int) -> Sequence[Held]:
        ends = time.monotonic() + _WAIT_S
        await self._ask(at_most)
        while not self._come:
            wait_s = ends - time.monotonic()
            if wait_s <= 0:
                return []
            self._has_changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._has_changed.wait()
            self._require()
            await self._ask(at_most)
        return [self._come.popleft() for _ in range(min(at_most, len(self._come)))]

    async def acknowledge(self, held: Sequence[Held]) -> None:
        await self._answer([each.handle for each in held], b"")

    async def release(self, held: Sequence[Held]) -> None:
        await self._take_no_more()  # or they would come back here
        await self._answer([each.handle for each in held], _NAK)

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        try:
            if not self._connection.is_lost:
                await self._take_no_more()
                await self._answer(list(self._given_out), _NAK)
        finally:
            await self._connection.drop()

    async def _take_no_more(self) -> None:
        """Have nothing more come; what was on its way is here when this returns."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._connection.unsubscribe(subscription)
            # Asked for this, a consumer also forgets the requests that nobody waits at any more. With one of
            # them NATS 2.9.10 brings a message that was given back too late, and another one twice.
            await self._connection.api(
                *((f"CONSUMER.INFO.{self._stream}.{each.name}", None) for each in self._order)
            )

    # What comes

    async def _ask(self, at_most: int) -> None:
        """Have a request open at each consumer, together for a batch and one message each at the most."""
        self._require()
        if len(self._come) >= at_most:
            return
        now = time.monotonic()
        share = max(1, at_most // max(1, sum(each.wish > 1 for each in self._order)))
        for place, each in enumerate(self._order):
            if each.open:
                if now > each.asked_at + _EXPIRES_S + _LOST_S:
                    raise Unavailable(f"the consumer {each.name!r} does not answer")
                continue
            if now < each.rests_until:
                continue
            each.open = min(each.wish, share)
            each.turn += 1
            each.asked_at = now
            await self._connection.send(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{each.name}",
                b'{"batch":%d,"expires":%d}' % (each.open, _EXPIRES_S * _NANOSECONDS),
                f"{self._connection.inbox}.pull.{place}.{each.turn}",
            )

    def _require(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._connection.is_lost or self._connection.is_forbidden:
            raise self._connection.error()

    async def _on_message(self, message: Msg) -> None:
        if not message.reply:
            self._on_status(message)
            return
        name, delivered = _parts(message.reply)
        consumer = self._consumers[name]
        consumer.took_one()
        if consumer.pattern and not self._belongs(message.subject, consumer.pattern):
            await self._connection.send(message.reply)
        else:
            self._given_out[message.reply] = None
            self._come.append(Held(_read(message), message.reply, delivered > 1))
        self._has_changed.set()

    def _on_status(self, message: Msg) -> None:
        place, turn = message.subject.split(".")[-2:]
        consumer, status = self._order[int(place)], status_of(message)
        text = (message.headers or {}).get("Description", "").lower()
        if status == NO_RESPONDERS or "deleted" in text or "push based" in text:
            self._fail(Unavailable(f"the consumer {consumer.name!r} is gone: {status} {text!a:.100}"))
        elif int(turn) == consumer.turn:
            consumer.open, consumer.wish = 0, 1
            if status != "408":  # it has expired, that is all
                consumer.rests_until = time.monotonic() + 1.0
        self._has_changed.set()

    def _belongs(self, subject: str, to: str) -> bool:
        """Tell whether a message is to be taken at this pattern's consumer, the first that it matches."""
        event_type = topics.type_of(subject, self._prefix)
        if event_type is None or event_type in self._types or not is_wanted(event_type, self._wanted):
            return False
        return next(each for each in self._patterns if pattern(each).fullmatch(event_type)) == to

    # What becomes of it

    async def _answer(self, places: Sequence[str], said: bytes) -> None:
        """Say this of the messages that are answered there; return when it has been heard of all of them."""
        for place in places:
            self._given_out.pop(place, None)
        # A consumer hears one after the other: once it confirms the last, it has heard them all.
        last = {_parts(place)[0]: place for place in places}
        lasts = {*last.values()}
        await self._connection.send_to_each([place for place in places if place not in lasts], said)
        try:
            async with asyncio.timeout(_CONFIRMED_S):
                answers = await self._connection.ask([Request(place, said) for place in last.values()])
        except TimeoutError as error:  # the consumer moved to another server, which knows nothing of these
            raise Unavailable("what was acknowledged is not confirmed in time", timed_out=True) from error
        if None in answers:
            raise self._connection.error()

    async def _keep_all(self, every_s: float) -> None:
        try:
            while True:
                await asyncio.sleep(every_s)
                await self._connection.send_to_each(list(self._given_out), _IN_PROGRESS)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._has_changed.set()


def _parts(place: str) -> tuple[str, int]:
    """Return the consumer, and how often it has delivered, of the subject where a message is acknowledged."""
    tokens = place.split(".")
    at = 3 if len(tokens) == 9 else 5  # with a domain and an account before the stream, or without
    return tokens[at], int(tokens[at + 1])


def _read(message: Msg) -> Message:
    headers = {name.lower(): value for name, value in (message.headers or {}).items()}
    found = {name: value for name, value in headers.items() if name in _READ}
    if "content-type" not in found:
        # The binding has it among the attributes; and before NATS had headers, all events were structured.
        is_bare = not any(name.startswith("ce-") for name in headers) and not wire.is_ours(message.data)
        found["content-type"] = headers.get(
            "ce-datacontenttype", cloudevents.STRUCTURED if is_bare else wire.JSON
        )
    return Message(found, message.data)
