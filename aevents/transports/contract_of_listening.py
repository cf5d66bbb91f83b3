"""What a transport promises to who listens, as tests: the part of the contract of brokers about groups.

Subclass `contract_of_brokers.BrokerContract`, which this belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from aevents import wire
from aevents.answer import Answer
from aevents.errors import Unavailable
from aevents.event import Message
from aevents.transports.base import Brought, Destination, Take, Transport, Wanted
from aevents.transports.contract import TransportContract
from aevents.transports.contract_of_batches import only_where
from aevents.transports.rehearsal import Mailbox, Receiver, an_event, number_of, some_events, taking, until

#: The types of all events of the contract.
TYPES = ("order-placed", "order größe ✓", "sized", "many", "last")
#: In which what should not come would have come.
QUIET_S = 1.0


class ListeningContract(TransportContract):
    """A part of `BrokerContract`."""

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

    # Groups

    def test_two_replicas_share_and_another_service_gets_all(self) -> None:
        async def scenario(transport: Transport) -> None:
            one, two, other = Mailbox(), Mailbox(), Mailbox()
            async with (
                self.listening(taking(one)),
                self.listening(taking(two)),
                self.listening(taking(other), "payments"),
            ):
                events = some_events(200)
                for at in range(0, 200, 20):
                    await transport.send_batch(self.destination, events[at : at + 20])
                    await asyncio.sleep(0.02)
                await other.wait_for(200)
                await until(lambda: len(one.messages) + len(two.messages) >= 200)
                await asyncio.sleep(QUIET_S)
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
            async with self.listening(taking(before)):
                await transport.send_batch(self.destination, some_events(50))
                await before.wait_for(50)
            await transport.send(self.destination, an_event("last"))
            async with self.listening(taking(after)):
                await after.wait_for(1)
                await asyncio.sleep(QUIET_S)
            assert [wire.decode(message).type for message in after.messages] == ["last"]

        self.run(scenario)

    def test_what_is_sent_while_a_service_is_away_waits_for_it(self) -> None:
        async def scenario(transport: Transport) -> None:
            async with self.listening(taking(Mailbox())):
                pass
            await transport.send_batch(self.destination, some_events(50))
            mailbox = Mailbox()
            async with self.listening(taking(mailbox)):
                await mailbox.wait_for(50)

        self.run(scenario)

    @only_where("can_replay")
    def test_a_service_that_comes_late_gets_what_was_sent_before(self) -> None:
        async def scenario(transport: Transport) -> None:
            first, late = Mailbox(), Mailbox()
            async with self.listening(taking(first)):
                await transport.send_batch(self.destination, some_events(50))
                await first.wait_for(50)
            async with self.listening(taking(late), "latecomer"):
                await late.wait_for(50)

        self.run(scenario)

    # What is not owned

    def test_what_is_not_owned_comes_again_and_the_others_do_not(self) -> None:
        async def scenario(transport: Transport) -> None:
            seen: list[int] = []

            async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
                numbers = [number_of(each.message) for each in brought]
                answers = [Answer(503 if n == 3 and seen.count(3) < 2 else 200, {}) for n in numbers]
                seen.extend(numbers)
                return answers

            async with self.listening(take):
                await transport.send_batch(self.destination, some_events(10))
                await until(lambda: seen.count(3) == 3 and len(seen) >= 12)
                await asyncio.sleep(QUIET_S)
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
            mailbox = Mailbox()
            again: list[bool] = []

            async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
                again.extend(each.is_again for each in brought)
                return [await mailbox(each.message) for each in brought]

            async with self.listening(take):
                async with asyncio.timeout(self.takes_over_within_s):
                    await mailbox.wait_for(20)
            assert sorted(map(number_of, mailbox.messages)) == list(range(20))
            assert any(again), "who takes it must know that it may have ended another"

        self.run(scenario)

    def test_what_is_being_taken_at_the_end_is_owned(self) -> None:
        async def scenario(transport: Transport) -> None:
            has_come, after = asyncio.Event(), Mailbox()
            taken: list[int] = []

            async def slow(brought: Sequence[Brought]) -> Sequence[Answer]:
                has_come.set()
                await asyncio.sleep(0.5)
                taken.extend(number_of(each.message) for each in brought)
                return [Answer(200, {}) for _ in brought]

            async with self.listening(slow):
                await transport.send(self.destination, an_event())
                await has_come.wait()
            assert taken == [1]
            async with self.listening(taking(after)):
                await asyncio.sleep(2 * QUIET_S)
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
                async with self.listening(taking(other)):
                    await asyncio.sleep(self.outlasts_s + QUIET_S)
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

            async with self.listening(taking(Mailbox())):
                pass  # the group is there
            for _ in range(3):
                await transport.send_batch(self.destination, some_events(100))
            async with self.listening(take):
                await until(lambda: sum(sizes) >= 300)
            assert max(sizes) <= 64

        self.run(scenario, BATCH=64)

    def run(self, scenario: Callable[[Transport], Awaitable[None]], **limits: float) -> None:
        async def and_clean_up(transport: Transport) -> None:
            try:
                await scenario(transport)
            finally:
                await self.clean_up()

        super().run(and_clean_up, **limits)

    async def clean_up(self) -> None:
        """Remove from the broker what the test has made there, by `prefix` and `u` + `prefix`; or nothing."""


async def _answer(receiver: Receiver, message: Message) -> Answer:
    try:
        return await receiver(message)
    except Exception:  # as what runs handlers would
        return Answer(503, {})


def _ids(mailbox: Mailbox) -> list[str]:
    return [message.headers["webhook-id"] for message in mailbox.messages]
