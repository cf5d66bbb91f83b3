"""`memory://name`: a transport within the process, the reference to read first.

A receiver is any `async (Message) -> Answer`; it is found by the URL's host. Used by tests and by
the contract; it carries real encoded messages, so what works here works on a wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ClassVar
from urllib.parse import urlsplit

from aevents import retry
from aevents.answer import Answer, Receipt
from aevents.errors import Refused
from aevents.event import Message
from aevents.settings import conf
from aevents.transports.base import Destination, Transport
from aevents.wire import stamp

Receiver = Callable[[Message], Awaitable[Answer]]


class MemoryTransport(Transport):
    """Hands each message to the receiver that serves the name."""

    receivers: ClassVar[dict[str, Receiver]] = {}

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
        mistake = self.mistake_in(destination.url)
        if mistake is not None:
            raise Refused(f"the URL of {destination.name!r} cannot be used: {mistake}")
        receiver = self.receivers.get(self._name(destination))
        if receiver is None:
            raise retry.unreachable("nobody receives there")
        try:
            async with asyncio.timeout(self._patience_s()):
                answer = await receiver(Message(stamp(message), message.body))
        except Exception as error:
            raise retry.unreachable(f"the receiver failed: {type(error).__name__}: {error}"[:300]) from error
        return retry.judge(answer.status, answer.body, answer.headers.get("retry-after"))

    def _name(self, destination: Destination) -> str:
        return str(urlsplit(destination.url).hostname)

    def _patience_s(self) -> float | None:
        return conf().LIMITS.ATTEMPT_S
