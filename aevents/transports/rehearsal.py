"""What a transport is tried out with: an event, a scripted receiver, a loop that notices what is left.

`contract.py` is played with these; tests of your own transport may use them too.
"""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from django.conf import settings
from django.test import override_settings

from aevents import wire
from aevents.answer import Answer
from aevents.event import Event, Message, new_id
from aevents.transports.base import Brought, Take, Transport

T = TypeVar("T")
Receiver = Callable[[Message], Awaitable[Answer]]
#: What ends a test that hangs; nothing that works comes near it.
DEADLINE_S = 30.0


class Mailbox:
    """A receiver that keeps every message and answers as its script says; the last answer stays."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.messages: list[Message] = []
        self._answers = list(answers) or [Answer(200, {})]
        self._changed = asyncio.Condition()

    async def __call__(self, message: Message) -> Answer:
        async with self._changed:
            self.messages.append(message)
            self._changed.notify_all()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def wait_for(self, count: int = 1) -> list[Message]:
        """Return the messages once there are `count`: `send` may return before they are there."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.messages) >= count)
        return list(self.messages)


def an_event(event_type: str = "order-placed", data: bytes = b'{"n":1}', **fields: Any) -> Message:
    """Return the message of a new event with this payload."""
    return wire.encode(Event(new_id(), event_type, data, "accounts", datetime.now(UTC), **fields))


def some_events(count: int, event_type: str = "order-placed", **fields: Any) -> list[Event]:
    """Return so many new events, with the numbers from 0 on as `n` in their payloads."""
    now = datetime.now(UTC)
    return [Event(new_id(), event_type, b'{"n": %d }' % n, "accounts", now, **fields) for n in range(count)]


def number_of(message: Message) -> int:
    """Return the `n` of a message's payload."""
    number: int = wire.decode(message).payload["n"]
    return number


def taking(mailbox: Mailbox) -> Take:
    """Return what takes messages into a mailbox."""

    async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
        return [await mailbox(each.message) for each in brought]

    return take


async def until(is_so: Callable[[], Any]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():  # noqa: ASYNC110 - what changes it may be anything
            await asyncio.sleep(0.02)


async def outcome(sending: Awaitable[T]) -> T | Exception:
    """Return the receipt, or what was raised in its place."""
    try:
        return await sending
    except Exception as error:
        return error


def rehearse(
    make_transport: Callable[[], Transport],
    scenario: Callable[[Transport], Awaitable[None]],
    **limits: float,
) -> list[str]:
    """Run `scenario` with a new transport on a loop of its own; return what was left behind.

    That is: sockets and sessions still open, tasks still running, errors that nobody looked at.
    `limits` stand in `AEVENTS["LIMITS"]`; without them a busy machine makes nothing time out.
    """
    left: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: left.append(str(context)))
        transport = make_transport()
        try:
            await asyncio.wait_for(scenario(transport), DEADLINE_S)
        finally:
            await transport.close()
        del transport
        await asyncio.sleep(0)  # what was closed says goodbye
        left.extend(str(task) for task in asyncio.all_tasks() - {asyncio.current_task()})

    own = getattr(settings, "AEVENTS", {})
    bounds = {**own.get("LIMITS", {}), "CONNECT_S": DEADLINE_S, "ATTEMPT_S": DEADLINE_S, **limits}
    gc.freeze()  # so that what is collected, and blamed, is of this rehearsal
    try:
        with (
            override_settings(AEVENTS={**own, "LIMITS": bounds}),
            warnings.catch_warnings(record=True) as warned,
        ):
            warnings.simplefilter("always", ResourceWarning)
            asyncio.run(main())
            gc.collect()
    finally:
        gc.unfreeze()
    left.extend(str(warning.message) for warning in warned)
    return left
