"""`memory://name`: a transport within the process, the reference to read first.

A receiver is any `async (Message) -> Answer`; it is found by the URL's host. Used by tests and by
the contract; it carries real encoded messages, so what works here works on a wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

from aevents import batch, retry
from aevents.answer import Answer, Receipt
from aevents.errors import DeliveryError, NotTogether, Refused
from aevents.event import Event, Message
from aevents.settings import conf
from aevents.transports.base import Destination, Transport
from aevents.transports.offers import Offers
from aevents.wire import stamp

Receiver = Callable[[Message], Awaitable[Answer]]


class MemoryTransport(Transport):
    """Hands each message to the receiver that serves the name."""

    can_send_batches = True
    receivers: ClassVar[dict[str, Receiver]] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._offers = Offers()

    @classmethod
    def serve(cls, name: str, receiver: Receiver) -> None:
        """Let `receiver` take what is sent to `memory://name`, in place of any before it."""
        cls.receivers[name] = receiver

    @classmethod
    def stop(cls, name: str) -> None:
        """Take the receiver away: what is sent to it now is `Unavailable`."""
        cls.receivers.pop(name, None)

    @classmethod
    def mistake_in(cls, url: str) -> str | None:
        try:
            parts = urlsplit(url)
        except ValueError:  # whose text may repeat a part of the password
            return "it is no URL"
        return None if parts.scheme == "memory" and parts.hostname else "it must be memory://name"

    async def send(self, destination: Destination, message: Message) -> Receipt:
        answer = await self._ask(destination, message)
        return retry.judge(answer.status, answer.body, answer.headers.get("retry-after"))

    def takes_batches(self, destination: Destination) -> bool:
        return self.can_send_batches and destination in self._offers

    async def send_batch(
        self, destination: Destination, events: Sequence[Event]
    ) -> list[Receipt | DeliveryError]:
        answer = await self._ask(destination, batch.encode(events))
        try:
            return batch.judge(
                answer.status, answer.body, answer.headers.get("retry-after"), [event.id for event in events]
            )
        except NotTogether:
            self._offers.withdraw(destination)
            raise

    async def _ask(self, destination: Destination, message: Message) -> Answer:
        mistake = self.mistake_in(destination.url)
        if mistake is not None:
            raise Refused(f"the URL of {destination.name!r} cannot be used: {mistake}")
        receiver = self.receivers.get(self._name(destination))
        if receiver is None:
            raise retry.unreachable("nobody receives there")
        try:
            async with asyncio.timeout(self._patience_s()):
                answer = await receiver(Message(stamp(message, destination.keys), message.body))
                self._offers.note(destination, answer.headers.get("accept-post"))
                return answer
        except Exception as error:
            text = f"the receiver failed: {type(error).__name__}: {error}"[:300]
            raise retry.unreachable(text, timed_out=isinstance(error, TimeoutError)) from error

    def _name(self, destination: Destination) -> str:
        return str(urlsplit(destination.url).hostname)

    def _patience_s(self) -> float | None:
        return conf().LIMITS.ATTEMPT_S
