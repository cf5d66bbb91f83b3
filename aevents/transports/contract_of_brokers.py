"""What the transports of brokers promise beyond `contract.py`, as tests, against a real broker.

    class TestMyBroker(BrokerContract):
        good_urls = ("my://host",)
        bad_urls = ("my://",)
        url = "my://127.0.0.1:7777"

        def make_transport(self):
            return MyTransport(PREFIX=self.prefix)

Each test has a `prefix` of its own, so that it finds nothing of others. What a broker cannot do it says by the
flags of its class, and the tests of what it cannot are not collected.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from aevents import wire
from aevents.answer import Answer, Receipt
from aevents.errors import Refused, Unavailable
from aevents.event import Message
from aevents.transports.base import Brought, Destination, Take, Transport, Wanted
from aevents.transports.contract import TransportContract
from aevents.transports.contract_of_batches import only_where
from aevents.transports.rehearsal import DEADLINE_S, Mailbox, Receiver, an_event, outcome, some_events

#: The types of all events of the contract.
TYPES = ("order-placed", "order größe ✓", "sized", "many", "last")
_QUIET_S = 1.0  # in which what should not come would have come


class BrokerContract(TransportContract):
    """Subclass it, give `url` and `make_transport`, and pytest checks every promise."""

    does_the_answer_come_back = False
    has_many_destinations = False
    gives_up_on_silence = False
    can_send_many = True

    #: Where the broker is.
    url: ClassVar[str]
    #: Stands before the names of each test, in the broker.
    prefix = "aevents."
    #: The flags of the transport's class, as they are to be.
    keeps_order: ClassVar[bool] = False
    can_replay: ClassVar[bool] = False
    has_wildcards: ClassVar[bool] = False
    #: How long it takes at the most until what a replica that vanished was given is with another.
    takes_over_within_s: ClassVar[float] = 15.0

    @pytest.fixture(autouse=True)
    def _prefix(self) -> None:
        self.prefix = f"t{uuid.uuid4().hex[:12]}."

    @property
    def destination(self) -> Destination:
        """The broker, under a name."""
        return Destination("bus", self.url)

    @asynccontextmanager
    async def serving(self, receiver: Receiver) -> AsyncIterator[Destination]:
        async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
            return [await _answer(receiver, each.message) for each in brought]

        async with self.listening(take):
            yield self.destination

    @asynccontextmanager
    async def listening(
        self,
        take: Take,
        group: str = "orders",
        types: Sequence[str] = TYPES,
        patterns: Sequence[str] = (),
        transport: Transport | None = None,
    ) -> AsyncIterator[asyncio.Task[None]]:
        """Let a replica of a service take what comes, from when its groups are there."""
        used = transport or self.make_transport()
        wanted = Wanted(group, tuple(types), tuple(patterns))
        task = asyncio.create_task(used.listen(self.destination, wanted, take))
        try:
            await self.is_listening(used, wanted)
            yield task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Unavailable):
                await task
            if transport is None:
                await used.close()

    async def is_listening(self, transport: Transport, wanted: Wanted) -> None:
        """Return when what is sent from now on is kept for the group. A broker that replays need not wait."""
        if not self.can_replay:
            await asyncio.sleep(1.0)

    # What is said of it

    def test_its_class_says_what_it_can(self) -> None:
        transport = type(self.make_transport())
        names = ("keeps_order", "drops_duplicates", "can_replay", "has_wildcards")
        assert {name: getattr(transport, name) for name in names} == {
            name: getattr(self, name) for name in names
        }
        assert transport.can_listen
        assert transport.is_persistent
        assert transport.has_groups

    # What is sent

    def test_many_are_sent_as_one_message_each_and_all_are_confirmed(self) -> None:
        async def scenario(transport: Transport) -> None:
            events, mailbox = some_events(300), Mailbox()
            async with self.serving(mailbox) as destination:
                receipts = await transport.send_batch(destination, events)
                messages = await mailbox.wait_for(300)
            assert receipts == [Receipt()] * 300
            assert sorted(map(wire.decode, messages), key=lambda each: each.id) == sorted(
                events, key=lambda each: each.id
            )

        self.run(scenario)

    def test_a_type_that_is_too_long_for_a_name_is_refused_and_holds_up_no_other(self) -> None:
        async def scenario(transport: Transport) -> None:
            mailbox = Mailbox()
            long, short = some_events(1, "ü" * 200)[0], some_events(1)[0]
            async with self.serving(mailbox) as destination:
                refused, sent = await transport.send_batch(destination, [long, short])
                await mailbox.wait_for(1)
            assert isinstance(refused, Refused)
            assert sent == Receipt()

        self.run(scenario)

    def test_where_nothing_listens_it_is_unavailable_and_soon(self) -> None:
        async def scenario(transport: Transport) -> None:
            scheme = self.url.partition(":")[0]
            nowhere = Destination("nowhere", f"{scheme}://127.0.0.1:9")
            began = time.monotonic()
            assert isinstance(await outcome(transport.send(nowhere, an_event())), Unavailable)
            listening = transport.listen(nowhere, Wanted("orders", TYPES), _never)
            assert isinstance(await outcome(listening), Unavailable)
            assert time.monotonic() - began < 10

        self.run(scenario, CONNECT_S=1.0, ATTEMPT_S=2.0)

    # Groups

    def test_two_replicas_share_and_another_service_gets_all(self) -> None:
        async def scenario(transport: Transport) -> None:
            one, two, other = Mailbox(), Mailbox(), Mailbox()
            async with (
                self.listening(_taking(one)),
                self.listening(_taking(two)),
                self.listening(_taking(other), "payments"),
            ):
                events = some_events(200)
                for at in range(0, 200, 20):
                    await transport.send_batch(self.destination, events[at : at + 20])
                    await asyncio.sleep(0.02)
                await other.wait_for(200)
                await _until(lambda: len(one.messages) + len(two.messages) >= 200)
                await asyncio.sleep(_QUIET_S)
            wanted = sorted(event.id for event in events)
            assert sorted(_ids(one) + _ids(two)) == wanted, "each once"
            assert sorted(_ids(other)) == wanted
            assert self.shares_unevenly or (one.messages and two.messages)

        self.run(scenario)

    #: May one replica get all, as long as it keeps up? Kafka shares by partition.
    shares_unevenly: ClassVar[bool] = False

    def test_what_a_service_has_taken_does_not_come_again_when_it_is_back(self) -> None:
        async def scenario(transport: Transport) -> None:
            before, after = Mailbox(), Mailbox()
            async with self.listening(_taking(before)):
                await transport.send_batch(self.destination, some_events(50))
                await before.wait_for(50)
            await transport.send(self.destination, an_event("last"))
            async with self.listening(_taking(after)):
                await after.wait_for(1)
                await asyncio.sleep(_QUIET_S)
            assert [wire.decode(message).type for message in after.messages] == ["last"]

        self.run(scenario)

    def test_what_is_sent_while_a_service_is_away_waits_for_it(self) -> None:
        async def scenario(transport: Transport) -> None:
            async with self.listening(_taking(Mailbox())):
                pass
            await transport.send_batch(self.destination, some_events(50))
            mailbox = Mailbox()
            async with self.listening(_taking(mailbox)):
                await mailbox.wait_for(50)

        self.run(scenario)

    @only_where("can_replay")
    def test_a_service_that_comes_late_gets_what_was_sent_before(self) -> None:
        async def scenario(transport: Transport) -> None:
            first, late = Mailbox(), Mailbox()
            async with self.listening(_taking(first)):
                await transport.send_batch(self.destination, some_events(50))
                await first.wait_for(50)
            async with self.listening(_taking(late), "latecomer"):
                await late.wait_for(50)

        self.run(scenario)

    # What is not owned

    def test_what_is_not_owned_comes_again_and_the_others_do_not(self) -> None:
        async def scenario(transport: Transport) -> None:
            seen: list[int] = []

            async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
                numbers = [_number(each.message) for each in brought]
                answers = [Answer(503 if n == 3 and seen.count(3) < 2 else 200, {}) for n in numbers]
                seen.extend(numbers)
                return answers

            async with self.listening(take):
                await transport.send_batch(self.destination, some_events(10))
                await _until(lambda: seen.count(3) == 3 and len(seen) >= 12)
                await asyncio.sleep(_QUIET_S)
            assert sorted(seen) == sorted([*range(10), 3, 3])

        self.run(scenario)

    def test_what_a_replica_was_given_and_did_not_own_goes_to_another(self) -> None:
        async def scenario(transport: Transport) -> None:
            has_come = asyncio.Event()

            async def hang(brought: Sequence[Brought]) -> Sequence[Answer]:
                has_come.set()
                return [Answer(503, {}) for _ in brought]

            async with self.listening(hang):
                await transport.send_batch(self.destination, some_events(20))
                await has_come.wait()
            mailbox, again = Mailbox(), []

            async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
                again.extend(each.is_again for each in brought)
                return [await mailbox(each.message) for each in brought]

            async with self.listening(take):
                async with asyncio.timeout(self.takes_over_within_s):
                    await mailbox.wait_for(20)
            assert sorted(map(_number, mailbox.messages)) == list(range(20))
            assert any(again), "who takes it must know that it may have ended another"

        self.run(scenario)

    def test_what_is_being_taken_at_the_end_is_owned(self) -> None:
        async def scenario(transport: Transport) -> None:
            has_come, taken, after = asyncio.Event(), [], Mailbox()

            async def slow(brought: Sequence[Brought]) -> Sequence[Answer]:
                has_come.set()
                await asyncio.sleep(0.5)
                taken.extend(_number(each.message) for each in brought)
                return [Answer(200, {}) for _ in brought]

            async with self.listening(slow):
                await transport.send(self.destination, an_event())
                await has_come.wait()
            assert taken == [1]
            async with self.listening(_taking(after)):
                await asyncio.sleep(2 * _QUIET_S)
            assert not after.messages

        self.run(scenario)

    def test_what_takes_long_is_not_given_to_another_meanwhile(self) -> None:
        async def scenario(transport: Transport) -> None:
            has_come, other = asyncio.Event(), Mailbox()

            async def slow(brought: Sequence[Brought]) -> Sequence[Answer]:
                has_come.set()
                await asyncio.sleep(self.outlasts_s)
                return [Answer(200, {}) for _ in brought]

            async with self.listening(slow):
                await transport.send(self.destination, an_event())
                await has_come.wait()
                async with self.listening(_taking(other)):
                    await asyncio.sleep(self.outlasts_s + _QUIET_S)
            assert not other.messages

        self.run(scenario)

    #: A time longer than that after which the broker takes a silent replica for dead, as the test has set it.
    outlasts_s: ClassVar[float] = 3.0

    def test_no_more_than_a_bounded_number_are_given_out_at_a_time(self) -> None:
        async def scenario(transport: Transport) -> None:
            sizes: list[int] = []

            async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
                sizes.append(len(brought))
                return [Answer(200, {}) for _ in brought]

            async with self.listening(_taking(Mailbox())):
                pass  # the group is there
            for _ in range(3):
                await transport.send_batch(self.destination, some_events(100))
            async with self.listening(take):
                await _until(lambda: sum(sizes) >= 300)
            assert max(sizes) <= 64

        self.run(scenario, BATCH=64)

    # What the broker does by itself

    @only_where("drops_duplicates")
    def test_a_second_copy_is_dropped(self) -> None:
        async def scenario(transport: Transport) -> None:
            message, mailbox = an_event(), Mailbox()
            async with self.serving(mailbox) as destination:
                for _ in range(3):
                    assert await transport.send(destination, message) == Receipt()
                await transport.send(destination, an_event("last"))
                await mailbox.wait_for(2)
                await asyncio.sleep(_QUIET_S)
            assert len(mailbox.messages) == 2

        self.run(scenario)

    @only_where("keeps_order")
    def test_what_has_the_same_key_comes_in_its_order(self) -> None:
        async def scenario(transport: Transport) -> None:
            mailbox = Mailbox()
            async with self.serving(mailbox) as destination:
                events = [
                    event
                    for pair in zip(*(some_events(100, key=key) for key in ("a", "b")), strict=True)
                    for event in pair
                ]
                for at in range(0, 200, 40):
                    await transport.send_batch(destination, events[at : at + 40])
                await mailbox.wait_for(200)
            for key in ("a", "b"):
                found = [wire.decode(message) for message in mailbox.messages]
                assert [event.payload["n"] for event in found if event.key == key] == list(range(100))

        self.run(scenario)

    # Wildcards

    @only_where("has_wildcards")
    def test_a_pattern_brings_the_types_that_match_and_new_ones_too(self) -> None:
        async def scenario(transport: Transport) -> None:
            mailbox = Mailbox()
            await transport.send(self.destination, an_event("audit-first"))
            async with self.listening(_taking(mailbox), types=(), patterns=("audit-*",)):
                await transport.send(self.destination, an_event("other"))
                await transport.send(self.destination, an_event("audit-größe.x"))
                await mailbox.wait_for(2)
                await asyncio.sleep(_QUIET_S)
            found = sorted(wire.decode(message).type for message in mailbox.messages)
            assert found == ["audit-first", "audit-größe.x"]

        self.run(scenario)

    # What else is in a broker

    def test_two_prefixes_do_not_see_each_other(self) -> None:
        async def scenario(transport: Transport) -> None:
            other = type(transport)(**{**transport.options, "PREFIX": f"u{self.prefix}"})
            mine, theirs = Mailbox(), Mailbox()
            try:
                async with self.listening(_taking(mine)), self.listening(_taking(theirs), transport=other):
                    await transport.send(self.destination, an_event())
                    await mine.wait_for(1)
                    await asyncio.sleep(_QUIET_S)
                assert not theirs.messages
            finally:
                await other.close()

        self.run(scenario)

    def test_a_wrong_prefix_is_refused(self) -> None:
        async def scenario(transport: Transport) -> None:
            for wrong in ("two words.", "no-dot", 7, "x" * 50 + "."):
                other = type(transport)(PREFIX=wrong)
                found = await outcome(other.send(self.destination, an_event()))
                assert isinstance(found, Refused)
                assert "PREFIX" in str(found)

        self.run(scenario)

    def run(self, scenario: Callable[[Transport], Awaitable[None]], **limits: float) -> None:
        async def and_clean_up(transport: Transport) -> None:
            try:
                await scenario(transport)
            finally:
                await self.clean_up()

        super().run(and_clean_up, **limits)

    async def clean_up(self) -> None:
        """Remove from the broker what the test has made there, by `prefix` and `u` + `prefix`; or nothing."""


def _taking(mailbox: Mailbox) -> Take:
    async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
        return [await mailbox(each.message) for each in brought]

    return take


async def _never(brought: Sequence[Brought]) -> Sequence[Answer]:
    raise AssertionError("nothing can have come")


async def _answer(receiver: Receiver, message: Message) -> Answer:
    try:
        return await receiver(message)
    except Exception:  # as what runs handlers would
        return Answer(503, {})


async def _until(is_so: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():
            await asyncio.sleep(0.02)


def _number(message: Message) -> int:
    number: int = wire.decode(message).payload["n"]
    return number


def _ids(mailbox: Mailbox) -> list[str]:
    return [message.headers["webhook-id"] for message in mailbox.messages]
