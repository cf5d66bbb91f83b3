"""What every transport promises, as tests: the executable half of `base.py`.

    from aevents.transports.contract import TransportContract

    class TestMyTransport(TransportContract):
        good_urls = ("my://host/",)
        bad_urls = ("my://",)

        def make_transport(self):
            return MyTransport()

        @asynccontextmanager
        async def serving(self, receiver):
            server = await MyServer.start(on_message=receiver)
            yield Destination("orders", server.url)
            await server.stop()

pytest runs it like any class of tests and needs no plugin for it; Django's settings must be
configured. Where a transport rightly differs, say so by a flag: each flag is a question.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, ClassVar

import pytest

from aevents import wire
from aevents.answer import Answer, Receipt
from aevents.errors import Refused, Unavailable
from aevents.event import Message
from aevents.transports.base import Destination, Transport
from aevents.transports.contract_of_batches import BatchContract, only_where
from aevents.transports.rehearsal import Mailbox, Receiver, an_event, outcome, rehearse


class TransportContract(BatchContract):
    """Subclass it, provide `make_transport` and `serving`, and pytest checks every promise."""

    #: URLs that `mistake_in` must let pass.
    good_urls: ClassVar[tuple[str, ...]]
    #: URLs that it must object to.
    bad_urls: ClassVar[tuple[str, ...]]

    #: Does the receiver's own answer come back to the sender? A broker answers for itself: it owns
    #: what was sent, whoever receives it, and whatever becomes of it there.
    does_the_answer_come_back: ClassVar[bool] = True
    #: Can one process send to several destinations of this transport?
    has_many_destinations: ClassVar[bool] = True
    #: Does `send` give up on a silent destination after `LIMITS["ATTEMPT_S"]`?
    gives_up_on_silence: ClassVar[bool] = True
    #: Is a second copy of a message dropped on the way?
    drops_duplicates: ClassVar[bool] = False

    @abstractmethod
    def make_transport(self) -> Transport:
        """Return a new instance, as the courier makes one for each process."""
        raise NotImplementedError

    @abstractmethod
    def serving(self, receiver: Receiver) -> AbstractAsyncContextManager[Destination]:
        """Let `receiver` take, on this loop, what is sent to the destination; after it nobody is there.

        What `receiver` raises is answered as a server of this kind answers it.
        """
        raise NotImplementedError

    # What is carried

    def test_headers_and_body_arrive_as_they_were_sent(self) -> None:
        async def scenario(transport: Transport) -> None:
            data = '{ "text": "€ \\u0000", "n": [1.0, -0, 1e5] }'.encode()
            message, mailbox = an_event("order größe ✓", data, key="k/7 %é"), Mailbox()
            async with self.serving(mailbox) as destination:
                await transport.send(destination, message)
                (got,) = await mailbox.wait_for(1)
            assert got.body == message.body
            assert dict(message.headers).items() <= dict(got.headers).items()

        self.run(scenario)

    @pytest.mark.parametrize("size", [0, 1, 65_536, 256 * 1024])
    def test_a_body_of_any_size_arrives_whole(self, size: int) -> None:
        async def scenario(transport: Transport) -> None:
            message, mailbox = an_event("sized", b'{"x":"%b"}' % (b"y" * size)), Mailbox()
            async with self.serving(mailbox) as destination:
                await transport.send(destination, message)
                assert [got.body for got in await mailbox.wait_for(1)] == [message.body]

        self.run(scenario)

    def test_each_attempt_is_stamped_and_keeps_the_id(self) -> None:
        async def scenario(transport: Transport) -> None:
            message, mailbox, began = an_event(), Mailbox(), int(time.time())
            untouched = dict(message.headers)
            async with self.serving(mailbox) as destination:
                await transport.send(destination, message)
                await transport.send(destination, message)
                for got in await mailbox.wait_for(1 if self.drops_duplicates else 2):
                    assert got.headers["webhook-id"] == message.headers["webhook-id"]
                    assert began <= int(got.headers["webhook-timestamp"]) <= int(time.time())
            assert message.headers == untouched

        self.run(scenario)

    # What the answer means

    @pytest.mark.parametrize("status", [200, 201, 202])
    def test_2xx_is_a_receipt_with_the_verdict(self, status: int) -> None:
        receipt = self._outcome_of(Answer(status, {"status": "unhandled"}))
        assert receipt == Receipt("unhandled" if self.does_the_answer_come_back else "")

    @pytest.mark.parametrize("status", [429, 503])
    def test_a_wish_to_wait_is_unavailable_with_the_wait(self, status: int) -> None:
        error = self._outcome_of(Answer(status, {"detail": "busy"}, {"retry-after": "7"}))
        self._assert_unavailable(error, slowly=False, retry_after_s=7.0)

    @pytest.mark.parametrize("status", [408, 425, 500, 502, 504, 599])
    def test_a_passing_trouble_is_unavailable(self, status: int) -> None:
        self._assert_unavailable(self._outcome_of(Answer(status, {})), slowly=False)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 415])
    def test_what_a_person_must_mend_is_unavailable_slowly(self, status: int) -> None:
        self._assert_unavailable(self._outcome_of(Answer(status, {})), slowly=True)

    def test_410_is_refused(self) -> None:
        error = self._outcome_of(Answer(410, {}))
        assert isinstance(error, Refused if self.does_the_answer_come_back else Receipt)

    def test_a_failed_handler_is_told_from_a_destination_in_trouble(self) -> None:
        error = self._outcome_of(Answer(503, {"status": "failed", "detail": "a handler failed"}))
        self._assert_unavailable(error, slowly=False, answered=True)

    @only_where("does_the_answer_come_back")
    def test_the_error_says_what_the_receiver_said_and_is_printable(self) -> None:
        error = self._outcome_of(Answer(503, {"detail": "the café is closed\r\n\x1b[31m"}))
        assert "is closed" in str(error)
        assert str(error).isprintable()

    def test_a_receiver_that_raises_is_a_delivery_error_and_nothing_else(self) -> None:
        error = self._outcome_of(ValueError("a bug"))
        answered = self.does_the_answer_come_back
        assert isinstance(error, (Unavailable, Refused) if answered else Receipt)

    def test_nobody_there_is_unavailable(self) -> None:
        async def scenario(transport: Transport) -> None:
            async with self.serving(Mailbox()) as destination:
                pass
            self._assert_unavailable(await outcome(transport.send(destination, an_event())), slowly=False)

        self.run(scenario)

    def test_a_destination_that_comes_back_is_reached_again(self) -> None:
        async def scenario(transport: Transport) -> None:
            for _ in range(2):
                mailbox = Mailbox()
                async with self.serving(mailbox) as destination:
                    await transport.send(destination, an_event())
                    await mailbox.wait_for(1)

        self.run(scenario)

    @only_where("has_many_destinations")
    def test_a_destination_never_sends_it_elsewhere(self) -> None:
        async def scenario(transport: Transport) -> None:
            elsewhere = Mailbox()
            async with self.serving(elsewhere) as other:
                moved = Mailbox(Answer(307, {}, {"location": other.url}))
                async with self.serving(moved) as destination:
                    error = await outcome(transport.send(destination, an_event()))
                    await moved.wait_for(1)
            self._assert_unavailable(error, slowly=True)
            assert not elsewhere.messages

        self.run(scenario)

    @only_where("gives_up_on_silence")
    def test_a_silent_destination_is_given_up(self) -> None:
        async def scenario(transport: Transport) -> None:
            released = asyncio.Event()

            async def silent(_: Message) -> Answer:
                await released.wait()
                return Answer(200, {})

            async with self.serving(silent) as destination:
                self._assert_unavailable(await outcome(transport.send(destination, an_event())), slowly=False)
                released.set()

        self.run(scenario, ATTEMPT_S=0.2)

    # One instance for all

    def test_many_at_once_are_not_mixed_up(self) -> None:
        async def slow_by_turns(message: Message) -> Answer:
            number = wire.decode(message).payload["n"]
            for _ in range(number % 7):
                await asyncio.sleep(0)
            return Answer(200, {"status": f"took {number}"})

        async def scenario(transport: Transport) -> None:
            async with AsyncExitStack() as stack:
                places = [
                    await stack.enter_async_context(self.serving(slow_by_turns))
                    for _ in range(2 if self.has_many_destinations else 1)
                ]
                messages = [an_event("many", b'{"n":%d}' % n) for n in range(200)]
                receipts = await asyncio.gather(
                    *(transport.send(places[n % len(places)], m) for n, m in enumerate(messages))
                )
            answered = self.does_the_answer_come_back
            assert [r.verdict for r in receipts] == [f"took {n}" if answered else "" for n in range(200)]

        self.run(scenario)

    def test_a_cancelled_send_leaves_the_transport_usable(self) -> None:
        async def scenario(transport: Transport) -> None:
            has_come, released, mailbox = asyncio.Event(), asyncio.Event(), Mailbox()

            async def held(message: Message) -> Answer:
                has_come.set()
                await released.wait()
                return await mailbox(message)

            async with self.serving(held) as destination:
                sending = asyncio.ensure_future(transport.send(destination, an_event()))
                await has_come.wait()
                if sending.cancel():
                    with pytest.raises(asyncio.CancelledError):
                        await sending
                released.set()
                await transport.send(destination, an_event("last"))
                while "last" not in [wire.decode(got).type for got in mailbox.messages]:
                    await mailbox.wait_for(len(mailbox.messages) + 1)

        self.run(scenario)

    # URLs and the end

    def test_a_good_url_has_no_mistake(self) -> None:
        assert not any(map(type(self.make_transport()).mistake_in, self.good_urls))

    def test_a_bad_url_is_said_to_be_one_and_refused(self) -> None:
        async def scenario(transport: Transport) -> None:
            for url in self.bad_urls:
                mistake = type(transport).mistake_in(url)
                assert mistake, url
                error = await outcome(transport.send(Destination("orders", url), an_event()))
                assert isinstance(error, Refused), url
                assert "s3cret" not in f"{mistake}{error}", "what may be a password is not repeated"

        self.run(scenario)

    def test_a_transport_that_was_never_used_closes(self) -> None:
        self.run(lambda _: asyncio.sleep(0))

    def run(self, scenario: Callable[[Transport], Awaitable[None]], **limits: float) -> None:
        """Run `scenario` with a new transport; whatever it leaves behind fails the test."""
        assert rehearse(self.make_transport, scenario, **limits) == []

    def _outcome_of(self, answer: Answer | Exception) -> Receipt | Exception:
        found: list[Receipt | Exception] = []

        async def scenario(transport: Transport) -> None:
            mailbox = Mailbox(answer)
            async with self.serving(mailbox) as destination:
                found.append(await outcome(transport.send(destination, an_event())))
                await mailbox.wait_for(1)

        self.run(scenario)
        return found[0]

    def _assert_unavailable(self, error: Receipt | Exception, *, slowly: bool, **facts: Any) -> None:
        assert isinstance(error, Unavailable if self.does_the_answer_come_back else Receipt)
        if isinstance(error, Unavailable):
            wanted = {"slowly": slowly, "retry_after_s": None, "answered": False, **facts}
            assert {name: getattr(error, name) for name in wanted} == wanted
