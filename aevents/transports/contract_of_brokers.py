"""What the transports of brokers promise beyond `contract.py`, as tests, against a real broker.

    class TestMyBroker(BrokerContract):
        good_urls = ("my://host",)
        bad_urls = ("my://",)
        url = "my://127.0.0.1:7777"

        def make_transport(self):
            return MyTransport(PREFIX=self.prefix)

Each test has a `prefix` of its own, so that it finds nothing of others. What a broker cannot do it says by
the flags of its class, and the tests of what it cannot are not collected.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from aevents import wire
from aevents.answer import Answer, Receipt
from aevents.errors import Refused, Unavailable
from aevents.transports.base import Brought, Destination, Transport, Wanted
from aevents.transports.contract_of_batches import only_where
from aevents.transports.contract_of_listening import QUIET_S, TYPES, ListeningContract
from aevents.transports.rehearsal import Mailbox, an_event, outcome, some_events, taking


class BrokerContract(ListeningContract):
    """Subclass it, give `url` and `make_transport`, and pytest checks every promise."""

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
            listening = transport.listen(nowhere, Wanted("orders", TYPES), never)
            assert isinstance(await outcome(listening), Unavailable)
            assert time.monotonic() - began < 10

        self.run(scenario, CONNECT_S=1.0, ATTEMPT_S=2.0)

    def test_what_is_not_owned_again_and_again_is_not_given_to_another_meanwhile(self) -> None:
        async def scenario(transport: Transport) -> None:
            has_come, is_owned, other = asyncio.Event(), asyncio.Event(), Mailbox()

            async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
                has_come.set()
                return [Answer(200 if is_owned.is_set() else 503, {}) for _ in brought]

            async with self.listening(take):
                await transport.send(self.destination, an_event())
                await has_come.wait()
                async with self.listening(taking(other)):
                    await asyncio.sleep(self.outlasts_s + QUIET_S)
                    is_owned.set()
            assert not other.messages

        self.run(scenario)

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
                await asyncio.sleep(QUIET_S)
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
            async with self.listening(taking(mailbox), types=(), patterns=("audit-*",)):
                await transport.send(self.destination, an_event("other"))
                await transport.send(self.destination, an_event("audit-größe.x"))
                await mailbox.wait_for(2)
                await asyncio.sleep(QUIET_S)
            found = sorted(wire.decode(message).type for message in mailbox.messages)
            assert found == ["audit-first", "audit-größe.x"]

        self.run(scenario)

    # What else is in a broker

    def test_two_prefixes_do_not_see_each_other(self) -> None:
        async def scenario(transport: Transport) -> None:
            other = type(transport)(**{**transport.options, "PREFIX": f"u{self.prefix}"})
            mine, theirs = Mailbox(), Mailbox()
            try:
                async with self.listening(taking(mine)), self.listening(taking(theirs), transport=other):
                    await transport.send(self.destination, an_event())
                    await mine.wait_for(1)
                    await asyncio.sleep(QUIET_S)
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


async def never(brought: Sequence[Brought]) -> Sequence[Answer]:
    """Take nothing: for a `listen` that nothing may come of."""
    raise AssertionError("nothing can have come")
