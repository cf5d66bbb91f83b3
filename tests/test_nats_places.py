"""What is in NATS besides messages: the stream, a service's consumers, and what other clients see of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("nats", reason="needs nats-py, the extra aevents[nats]")

import nats as client
from nats.aio.client import Client
from nats.js.api import StreamConfig
from nats.js.errors import NotFoundError

from aevents import cloudevents, wire
from aevents.answer import Answer, Receipt
from aevents.errors import Refused, Unavailable
from aevents.event import Message
from aevents.transports import nats_source
from aevents.transports.base import Brought, Destination, Transport, Wanted
from aevents.transports.nats import NatsTransport
from aevents.transports.nats_places import consumer_of
from aevents.transports.rehearsal import Mailbox, an_event, outcome, rehearse, some_events
from aevents.transports.sources import Held
from tests import brokers

Scenario = Callable[["Room"], Awaitable[None]]
_QUIET_S = 1.0  # in which what should not come would have come


class Room:
    """A prefix of the shared NATS, a transport to it, and a client that knows nothing of aevents."""

    def __init__(self, transport: NatsTransport, foreign: Client, destination: Destination) -> None:
        self.transport = transport
        self.foreign = foreign
        self.js = foreign.jetstream()
        self.prefix = transport.prefix
        self.stream = transport.prefix.removesuffix(".")
        self.destination = destination

    async def send(self, *messages: Message) -> None:
        for message in messages:
            assert await self.transport.send(self.destination, message) == Receipt()

    @asynccontextmanager
    async def listening(
        self, mailbox: Mailbox, *types: str, patterns: Sequence[str] = ()
    ) -> AsyncIterator[None]:
        async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
            return [await mailbox(each.message) for each in brought]

        wanted = Wanted("orders", types, tuple(patterns))
        task = asyncio.create_task(self.transport.listen(self.destination, wanted, take))
        try:
            yield
            assert not task.done(), task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def play(scenario: Scenario, **options: object) -> None:
    url = brokers.address("nats")
    prefix = f"t{uuid.uuid4().hex[:12]}."

    async def with_a_room(transport: Transport) -> None:
        assert isinstance(transport, NatsTransport)
        async with await client.connect(url) as foreign:
            room = Room(transport, foreign, Destination("bus", url))
            try:
                await scenario(room)
            finally:
                with contextlib.suppress(NotFoundError):
                    await room.js.delete_stream(room.stream)

    assert rehearse(lambda: NatsTransport(PREFIX=prefix, **{"ACK_WAIT_S": 2.0, **options}), with_a_room) == []


def types_of(mailbox: Mailbox) -> list[str]:
    return sorted(wire.decode(message).type for message in mailbox.messages)


# What other clients see, and what they send


def test_a_foreign_client_reads_it_by_the_binding() -> None:
    async def scenario(room: Room) -> None:
        message = an_event("größe", key="k 1")
        await room.send(message)
        sub = await room.js.pull_subscribe(f"{room.prefix}gr_C3_B6_C3_9Fe", stream=room.stream)
        (got,) = await sub.fetch(1)
        assert got.data == message.body
        headers = got.headers or {}
        assert headers["ce-specversion"] == "1.0"
        assert headers["ce-type"] == "gr%C3%B6%C3%9Fe"
        assert headers["ce-partitionkey"] == "k%201"
        assert headers["ce-datacontenttype"] == "application/json"
        assert headers["ce-id"] == headers["Nats-Msg-Id"] == headers["webhook-id"]

    play(scenario)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (
            {
                "Ce-Specversion": "1.0",
                "Ce-Id": "7",
                "Ce-Type": "order-placed",
                "Ce-Source": "/shop",
                "Ce-Datacontenttype": "application/json",
            },
            b'{"n":1}',
        ),
        (
            {"content-type": "application/cloudevents+json"},
            b'{"specversion":"1.0","id":"7","type":"order-placed","source":"/shop","data":{"n":1}}',
        ),
        (None, b'{"specversion":"1.0","id":"7","type":"order-placed","source":"/shop","data":{"n":1}}'),
    ],
    ids=["binary", "structured", "structured, as before there were headers"],
)
def test_what_a_foreign_client_sends_by_the_binding_is_read(
    headers: dict[str, str] | None, body: bytes
) -> None:
    async def scenario(room: Room) -> None:
        mailbox = Mailbox()
        async with room.listening(mailbox, "order-placed"):
            await room.send(an_event("other"))  # the stream is there
            await room.js.publish(f"{room.prefix}order-placed", body, headers=headers)
            (got,) = await mailbox.wait_for(1)
        is_structured = cloudevents.is_structured(got.headers)
        assert is_structured or cloudevents.is_binary(got)
        event = cloudevents.decode(got) if is_structured else cloudevents.decode_binary(got)
        assert (event.id, event.type, event.payload) == ("7", "order-placed", {"n": 1})

    play(scenario)


def test_our_own_form_without_any_header_is_read_too() -> None:
    async def scenario(room: Room) -> None:
        mailbox = Mailbox()
        async with room.listening(mailbox, "order-placed"):
            await room.send(an_event("other"))
            await room.foreign.publish(
                f"{room.prefix}order-placed", b'{"event_type":"order-placed","payload":{"n":2}}'
            )
            (got,) = await mailbox.wait_for(1)
        assert wire.decode(got).payload == {"n": 2}

    play(scenario)


# The stream


def test_the_stream_is_made_once_and_then_its_operators() -> None:
    async def scenario(room: Room) -> None:
        await room.send(an_event())
        config = (await room.js.stream_info(room.stream)).config
        assert (config.subjects, config.max_age, config.duplicate_window) == (
            [f"{room.prefix}>"],
            7200.0,
            5.0,
        )
        await room.js.update_stream(config, max_age=60.0, duplicate_window=1.0, max_msgs=1000)
        other = NatsTransport(PREFIX=room.prefix)
        await other.send(room.destination, an_event())
        source = await other.open(room.destination, Wanted("orders", ("order-placed",)))
        await source.close()
        await other.close()
        config = (await room.js.stream_info(room.stream)).config
        assert (config.max_age, config.duplicate_window, config.max_msgs) == (60.0, 1.0, 1000)

    play(scenario, KEEP_HOURS=2, DUPLICATES_S=5)


def test_a_stream_that_takes_other_subjects_is_left_alone_and_complained_about() -> None:
    async def scenario(room: Room) -> None:
        await room.js.add_stream(StreamConfig(name=room.stream, subjects=[f"{room.prefix}few"]))
        found = await outcome(room.transport.send(room.destination, an_event()))
        assert isinstance(found, Unavailable)
        assert found.slowly
        assert f"does not take the subjects {room.prefix}>" in str(found)
        assert await room.transport.send(room.destination, an_event("few")) == Receipt()
        with pytest.raises(Unavailable, match="does not take"):
            await room.transport.open(room.destination, Wanted("orders", ("few",)))

    play(scenario)


def test_another_stream_with_our_subjects_is_said_to_be_in_the_way() -> None:
    async def scenario(room: Room) -> None:
        await room.js.add_stream(StreamConfig(name=f"{room.stream}-other", subjects=[f"{room.prefix}few"]))
        try:
            found = await outcome(room.transport.send(room.destination, an_event()))
            assert isinstance(found, Unavailable)
            assert "overlap" in str(found)
        finally:
            await room.js.delete_stream(f"{room.stream}-other")

    play(scenario)


def test_a_stream_that_was_deleted_is_made_again_by_who_sends_and_who_listens() -> None:
    async def scenario(room: Room) -> None:
        async def never(brought: Sequence[Brought]) -> Sequence[Answer]:
            raise AssertionError("nothing can have come")

        listening = asyncio.create_task(
            room.transport.listen(room.destination, Wanted("orders", ("order-placed",)), never)
        )
        while not await _is_there(room, "order-placed"):  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.02)
        await room.js.delete_stream(room.stream)
        with pytest.raises(Unavailable, match="is gone"):
            async with asyncio.timeout(5):
                await listening
        mailbox = Mailbox()
        await room.send(an_event())
        async with room.listening(mailbox, "order-placed"):
            await mailbox.wait_for(1)

    play(scenario)


async def _is_there(room: Room, event_type: str) -> bool:
    with contextlib.suppress(NotFoundError):
        await room.js.consumer_info(room.stream, consumer_of("orders", event_type))
        return True
    return False


# Consumers


def test_a_consumer_never_gives_up_and_is_left_as_its_operator_has_it() -> None:
    async def scenario(room: Room) -> None:
        name, mailbox = consumer_of("orders", "order-placed"), Mailbox()
        await room.send(an_event())
        async with room.listening(mailbox, "order-placed"):
            await mailbox.wait_for(1)
        config = (await room.js.consumer_info(room.stream, name)).config
        assert (config.max_deliver, config.ack_wait) == (-1, 2.0)
        config.max_ack_pending = 77
        await room.js.add_consumer(room.stream, config)
        await room.send(an_event())
        async with room.listening(mailbox, "order-placed"):
            await mailbox.wait_for(2)
        assert (await room.js.consumer_info(room.stream, name)).config.max_ack_pending == 77

    play(scenario)


def test_a_type_that_is_new_to_a_service_brings_its_backlog_and_nothing_else() -> None:
    async def scenario(room: Room) -> None:
        await room.send(an_event("a"), an_event("b"), an_event("c"))
        before, after = Mailbox(), Mailbox()
        async with room.listening(before, "a"):
            await before.wait_for(1)
        async with room.listening(after, "a", "b"):
            await after.wait_for(1)
            await asyncio.sleep(_QUIET_S)
        assert (types_of(before), types_of(after)) == (["a"], ["b"])

    play(scenario)


def test_what_both_a_type_and_a_pattern_stand_for_comes_once() -> None:
    async def scenario(room: Room) -> None:
        mailbox = Mailbox()
        await room.send(an_event("audit-a"), an_event("audit-b"), an_event("other"))
        async with room.listening(mailbox, "audit-a", patterns=["audit-*"]):
            await room.send(an_event("audit-a"), an_event("audit-b"), an_event("other"))
            await mailbox.wait_for(4)
            await asyncio.sleep(_QUIET_S)
        assert types_of(mailbox) == ["audit-a", "audit-a", "audit-b", "audit-b"]

    play(scenario)


def test_a_pattern_that_is_new_to_a_service_brings_its_backlog_and_nothing_else() -> None:
    async def scenario(room: Room) -> None:
        await room.send(an_event("audit-a"), an_event("billing-a"))
        before, after = Mailbox(), Mailbox()
        async with room.listening(before, patterns=["audit-*"]):
            await before.wait_for(1)
            await asyncio.sleep(_QUIET_S)
        async with room.listening(after, patterns=["audit-*", "billing-*"]):
            await after.wait_for(1)
            await asyncio.sleep(_QUIET_S)
        assert (types_of(before), types_of(after)) == (["audit-a"], ["billing-a"])

    play(scenario)


def test_what_two_patterns_stand_for_comes_once() -> None:
    async def scenario(room: Room) -> None:
        mailbox = Mailbox()
        async with room.listening(mailbox, patterns=["*-placed", "order-*"]):
            await room.send(an_event("order-placed"), an_event("order-paid"), an_event("bid-placed"))
            await mailbox.wait_for(3)
            await asyncio.sleep(_QUIET_S)
        assert types_of(mailbox) == ["bid-placed", "order-paid", "order-placed"]

    play(scenario)


def test_what_waits_for_a_pattern_of_another_version_comes_to_this_one() -> None:
    async def scenario(room: Room) -> None:
        refusing, after = Mailbox(Answer(503, {})), Mailbox()
        async with room.listening(refusing, patterns=["*-placed", "order-*"]):
            await room.send(an_event("order-placed"), an_event("bid-placed"))
            await refusing.wait_for(2)
            await asyncio.sleep(_QUIET_S)  # the consumer of the other pattern has had it, and has let it go
        async with room.listening(after, patterns=["order-*"]):
            await after.wait_for(1)
            await room.send(an_event("order-placed"))
            await after.wait_for(2)
            await asyncio.sleep(_QUIET_S)
        assert types_of(after) == ["order-placed", "order-placed"]

    play(scenario)


def test_an_acknowledgement_that_nobody_confirms_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_source, "_CONFIRMED_S", 0.3)

    async def scenario(room: Room) -> None:
        nowhere = f"$JS.ACK.{room.stream}-gone.gone.1.1.1.1.0"
        silent = await room.foreign.subscribe(nowhere)
        source = await room.transport.open(room.destination, Wanted("orders", ("a",)))
        with pytest.raises(Unavailable, match="not confirmed in time"):
            await source.acknowledge([Held(an_event(), nowhere)])
        await silent.next_msg(1)
        await source.close()

    play(scenario)


def test_what_waits_for_a_type_comes_also_when_only_a_pattern_stands_for_it_now() -> None:
    async def scenario(room: Room) -> None:
        both, pattern = Mailbox(Answer(200, {})), Mailbox()
        async with room.listening(both, "audit-a", patterns=["audit-*"]):
            await room.send(an_event("audit-a"))
            await both.wait_for(1)
        refusing = Mailbox(Answer(503, {}))
        async with room.listening(refusing, "audit-a", patterns=["audit-*"]):
            await room.send(an_event("audit-a"))
            await refusing.wait_for(1)
            await asyncio.sleep(_QUIET_S)  # the consumer of the pattern has had it, and has let it go
        async with room.listening(pattern, patterns=["audit-*"]):
            await pattern.wait_for(1)
            await room.send(an_event("audit-a"))
            await pattern.wait_for(2)
            await asyncio.sleep(_QUIET_S)
        assert types_of(pattern) == ["audit-a", "audit-a"]

    play(scenario)


def test_long_names_and_strange_ones_are_those_of_consumers_too() -> None:
    async def scenario(room: Room) -> None:
        mailbox = Mailbox()
        kinds = ["x" * 200, "x" * 199 + "y", "a.b *>", "ß" * 30]
        await room.send(*map(an_event, kinds))
        async with room.listening(mailbox, *kinds):
            await mailbox.wait_for(4)
        assert types_of(mailbox) == sorted(kinds)

    play(scenario)


def test_how_much_is_given_out_in_advance_is_bounded() -> None:
    async def scenario(room: Room) -> None:
        kinds = [f"kind-{n}" for n in range(20)]
        for kind in kinds[:2]:
            for _ in range(3):
                await room.transport.send_batch(room.destination, some_events(256, kind))
        source = await room.transport.open(room.destination, Wanted("orders", tuple(kinds)))
        held = []
        while len(held) < 256:
            got = await source.fetch(64)
            assert len(got) <= 64
            held += got
        pending = [
            (await room.js.consumer_info(room.stream, consumer_of("orders", kind))).num_ack_pending or 0
            for kind in kinds
        ]
        assert sum(pending) <= len(held) + 3 * 64 + len(kinds)
        await source.acknowledge(held)
        await source.close()

    play(scenario)


def test_what_a_replica_that_vanished_had_goes_to_another_that_is_told_of_it() -> None:
    async def scenario(room: Room) -> None:
        await room.transport.send_batch(room.destination, some_events(20))
        wanted = Wanted("orders", ("order-placed",))
        vanishing = NatsTransport(**room.transport.options)
        source = await vanishing.open(room.destination, wanted)
        held = []
        while len(held) < 20:
            held += await source.fetch(20)
        await source.acknowledge(held[:5])
        await source._connection.drop()  # as its process would
        with contextlib.suppress(Exception):
            await source.close()
        await vanishing.close()
        other, again = await room.transport.open(room.destination, wanted), []
        async with asyncio.timeout(10):
            while len(again) < 15:
                again += await other.fetch(20)
        assert all(each.is_again for each in again)
        numbers = sorted(json.loads(each.message.body)["payload"]["n"] for each in again)
        assert numbers == list(range(5, 20))
        await other.acknowledge(again)
        await other.close()

    play(scenario)


def test_what_waits_in_advance_is_kept_as_long_as_its_replica_lives() -> None:
    async def scenario(room: Room) -> None:
        wanted = Wanted("orders", ("order-placed",))
        source = await room.transport.open(room.destination, wanted)
        assert not await source.fetch(20)
        await room.transport.send_batch(
            room.destination, some_events(20)
        )  # some come, and nobody asks for them
        other, others = await room.transport.open(room.destination, wanted), []
        for _ in range(6):
            found = await other.fetch(20)
            await other.acknowledge(found)
            others += found
        held = await source.fetch(20)
        assert held
        assert not [each for each in [*held, *others] if each.is_again]
        assert len({each.message.headers["webhook-id"] for each in [*held, *others]}) == 20
        await source.acknowledge(held)
        await source.close()
        await other.close()

    play(scenario)


def test_what_waits_in_advance_goes_to_another_at_once_when_its_replica_ends() -> None:
    async def scenario(room: Room) -> None:
        wanted = Wanted("orders", ("order-placed",))
        source = await room.transport.open(room.destination, wanted)
        assert not await source.fetch(20)
        await room.transport.send_batch(room.destination, some_events(20))
        await source.close()
        other, held = await room.transport.open(room.destination, wanted), []
        async with asyncio.timeout(5):
            while len(held) < 20:
                held += await other.fetch(20)
        assert len({each.message.headers["webhook-id"] for each in held}) == 20
        await other.acknowledge(held)
        await other.close()

    play(scenario, ACK_WAIT_S=60.0)


# What is too large


def test_what_is_too_large_with_its_headers_is_refused_and_the_others_are_sent() -> None:
    async def scenario(room: Room) -> None:
        most = room.foreign.max_payload  # of the body, to this client; the server counts the headers too
        small, large = an_event(), an_event(data=b'"%b"' % (b"x" * (most - 100)))
        assert len(large.body) < most
        assert isinstance(await outcome(room.transport.send(room.destination, large)), Refused)
        await room.send(small)
        events = some_events(2)
        huge = dataclasses.replace(events[0], id="huge", data=b'"%b"' % (b"x" * most))
        found = await room.transport.send_batch(room.destination, [events[0], huge, events[1]])
        assert (found[0], found[2]) == (Receipt(), Receipt())
        assert isinstance(found[1], Refused)
        assert "max_payload" in str(found[1])

    play(scenario)
