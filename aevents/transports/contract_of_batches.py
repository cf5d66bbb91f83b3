"""What a transport promises of batches, as tests: the part of the contract behind `can_send_batches`.

Subclass `contract.TransportContract`, which these belong to.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, TypeVar

import pytest

from aevents import batch
from aevents.answer import Answer, Receipt
from aevents.errors import NotTogether, Refused, Unavailable
from aevents.transports.base import Destination, Transport
from aevents.transports.rehearsal import Mailbox, Receiver, an_event, outcome, some_events

F = TypeVar("F", bound=Callable[..., None])
_OFFER = {"accept-post": batch.OFFER}


def only_where(flag: str) -> Callable[[F], F]:
    """Have a test only where this flag of the class is set."""

    def mark(test: F) -> F:
        test.flag = flag  # type: ignore[attr-defined]  # read by __init_subclass__
        return test

    return mark


class BatchContract:
    """A part of `TransportContract`."""

    #: Can it carry several events at once, in one message, to destinations that offered to take them?
    can_send_batches: ClassVar[bool] = False
    #: Can it carry several events at once without being offered it, as one message each?
    can_send_many: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        tests = {name: test for each in reversed(cls.__mro__) for name, test in vars(each).items()}
        for name, test in tests.items():
            flag = getattr(test, "flag", None)
            # A string, or it is none of ours: the docs are built with a stand-in for pytest, whose marks
            # have every attribute.
            if isinstance(flag, str) and not getattr(cls, flag):
                setattr(cls, name, None)  # not collected: what was not tried has not passed

    @abstractmethod
    def make_transport(self) -> Transport:
        raise NotImplementedError

    @abstractmethod
    def serving(self, receiver: Receiver) -> AbstractAsyncContextManager[Destination]:
        raise NotImplementedError

    @abstractmethod
    def run(self, scenario: Callable[[Transport], Awaitable[None]], **limits: float) -> None:
        raise NotImplementedError

    def test_whether_it_can_send_batches_is_said_by_its_class(self) -> None:
        assert type(self.make_transport()).can_send_batches is (self.can_send_batches or self.can_send_many)

    def test_batches_are_for_those_whose_last_answer_offered_to_take_them(self) -> None:
        answers = [Answer(200, {}), Answer(503, {}, _OFFER), Answer(200, {}, _OFFER), Answer(200, {})]

        async def scenario(transport: Transport) -> None:
            async with self.serving(Mailbox(*answers)) as destination:
                found = [transport.takes_batches(destination)]
                for _ in answers:
                    await outcome(transport.send(destination, an_event()))
                    found.append(transport.takes_batches(destination))
            offered, always = self.can_send_batches, self.can_send_many
            assert found == [always, always, offered or always, offered or always, always]

        self.run(scenario)

    @only_where("can_send_batches")
    def test_a_batch_is_one_message_and_each_event_in_it_has_an_outcome(self) -> None:
        async def scenario(transport: Transport) -> None:
            events = some_events(4)
            said = [
                {"id": events[1].id, "status": 503, "detail": "busy", "retry_after_s": 7},
                {"id": events[2].id, "status": 410},
                {"id": events[3].id, "status": 202},
            ]
            mailbox = Mailbox(Answer(200, {"events": said}, _OFFER))
            async with self.serving(mailbox) as destination:
                outcomes = await transport.send_batch(destination, events)
            (message,) = mailbox.messages
            assert batch.decode(message) == events
            assert message.headers["webhook-id"] not in [event.id for event in events]
            assert message.headers["webhook-timestamp"].isdigit()
            assert not [name for name in message.headers if name.startswith("ce-")]
            first, busy, refused, last = outcomes
            assert (first, last) == (Receipt(), Receipt())
            assert isinstance(busy, Unavailable)
            assert (busy.retry_after_s, busy.answered) == (7.0, True)
            assert isinstance(refused, Refused)

        self.run(scenario)

    @only_where("can_send_batches")
    @pytest.mark.parametrize("status", [400, 404, 413, 415])
    def test_a_batch_that_is_not_taken_as_one_withdraws_the_offer_for_a_while(self, status: int) -> None:
        async def scenario(transport: Transport) -> None:
            mailbox = Mailbox(Answer(200, {}, _OFFER), Answer(status, {}, _OFFER), Answer(200, {}, _OFFER))
            async with self.serving(mailbox) as destination:
                await transport.send(destination, an_event())
                assert transport.takes_batches(destination)
                error = await outcome(transport.send_batch(destination, some_events(2)))
                assert isinstance(error, NotTogether)
                assert not transport.takes_batches(destination)
                await transport.send(destination, an_event())
                assert not transport.takes_batches(destination)

        self.run(scenario)

    @only_where("can_send_batches")
    @pytest.mark.parametrize("answer", [Answer(503, {}), Answer(200, {"events": 7}), ValueError("a bug")])
    def test_what_is_said_of_a_whole_batch_is_raised(self, answer: Answer | Exception) -> None:
        async def scenario(transport: Transport) -> None:
            async with self.serving(Mailbox(answer)) as destination:
                error = await outcome(transport.send_batch(destination, some_events(2)))
            assert isinstance(error, Unavailable)
            error = await outcome(transport.send_batch(destination, some_events(2)))
            assert isinstance(error, Unavailable), "nobody is there any more"

        self.run(scenario)
