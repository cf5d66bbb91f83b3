"""What a broker holds for a group: messages in, to who takes them, and their acknowledgements out.

Each broker has a `Source` of its own; `pump` is the same for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from aevents.answer import Answer
from aevents.event import Message, pattern
from aevents.settings import conf
from aevents.transports.base import Brought, Take, Wanted

T = TypeVar("T")
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0  # before what is not owned is taken again
_GRACE_S = 5.0  # for what is being taken when the end is asked for


@dataclass(slots=True, eq=False)
class Held:
    """A message that a broker has given out and not been told to forget. `handle` is the source's own."""

    message: Message
    handle: Any = None
    is_again: bool = False

    def brought(self) -> Brought:
        """Return what is shown of it to who takes it."""
        return Brought(self.message, self.is_again)


class Source(ABC):
    """What a broker holds for one group. All of it raises `Unavailable` where the broker is lost."""

    #: How often it is told that messages are still being worked on; None: it need not be.
    keep_every_s: float | None = None
    #: May it be asked for the next messages while the last ones are being taken?
    can_fetch_ahead: bool = True

    @abstractmethod
    async def fetch(self, at_most: int) -> Sequence[Held]:
        """Return what is there, in order, as soon as there is something; or nothing, after a second or so."""
        raise NotImplementedError

    @abstractmethod
    async def acknowledge(self, held: Sequence[Held]) -> None:
        """Have these forgotten: returns when they need not be brought again."""
        raise NotImplementedError

    async def keep(self, held: Sequence[Held]) -> None:
        """Say that these are still being worked on, so that nobody else is given them."""
        return

    async def release(self, held: Sequence[Held]) -> None:
        """Let others have these at once, as this replica ends."""
        return

    async def close(self) -> None:
        """Close it; what was not acknowledged is brought again, to whoever is there."""
        return


def is_wanted(event_type: str, wanted: Wanted) -> bool:
    """Tell whether a type is among those that are wanted."""
    return event_type in wanted.types or any(pattern(text).fullmatch(event_type) for text in wanted.patterns)


async def pump(source: Source, take: Take) -> None:
    """Bring what `source` holds to `take`, batch by batch in order, until cancelled or the source is lost.

    When it is cancelled, what is being taken comes to its end and is acknowledged, for some seconds.
    """
    ahead: asyncio.Task[Sequence[Held]] | None = None
    hands = _Hands(source)
    try:
        while True:
            hands.take_up(await (ahead or _fetch(source)))
            ahead = asyncio.ensure_future(_fetch(source)) if source.can_fetch_ahead and hands.held else None
            pause_s = _PAUSE_S
            while hands.held:
                await _finished(_taken(hands, take))
                if hands.held:
                    await hands.meanwhile(asyncio.sleep(pause_s * random.uniform(0.5, 1.0)))  # noqa: S311 - no secret
                    pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
    finally:
        left = [*hands.held, *await _last_of(ahead)]
        if left:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_GRACE_S):
                    await source.release(left)


class _Hands:
    """What was fetched and is not owned yet. While it waits, the broker is told that it is in good hands."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.held: Sequence[Held] = ()
        self._kept_at = 0.0

    def take_up(self, held: Sequence[Held]) -> None:
        """Hold these, which the broker has just given out."""
        self.held = held
        self._kept_at = time.monotonic()

    async def meanwhile(self, work: Awaitable[T]) -> T:
        """Await `work`; keep what is held, however many such works there are and however short each is."""
        every_s = self.source.keep_every_s
        if every_s is None:
            return await work
        task = asyncio.ensure_future(work)
        try:
            while True:
                wait_s = self._kept_at + every_s - time.monotonic()
                if wait_s > 0 and (await asyncio.wait([task], timeout=wait_s))[0]:
                    return task.result()
                if self.held:
                    await self.source.keep(self.held)
                self._kept_at = time.monotonic()
        finally:
            if not task.done():
                task.cancel()


async def _fetch(source: Source) -> Sequence[Held]:
    return await source.fetch(int(conf().LIMITS.BATCH))


async def _last_of(ahead: asyncio.Task[Sequence[Held]] | None) -> Sequence[Held]:
    """Return what was fetched ahead and will not be taken."""
    if ahead is None:
        return ()
    ahead.cancel()
    with contextlib.suppress(Exception, asyncio.CancelledError):
        return await ahead
    return ()


async def _taken(hands: _Hands, take: Take) -> None:
    """Have what is held taken, and forgotten as far as it is owned."""
    held = hands.held
    answers: Sequence[Answer] = await hands.meanwhile(take([each.brought() for each in held]))
    owned = [each for each, answer in zip(held, answers, strict=True) if 200 <= answer.status < 300]
    if owned:
        await hands.source.acknowledge(owned)
    if len(owned) == len(held):
        hands.held = ()
    else:
        hands.held = [a for a, answer in zip(held, answers, strict=True) if not 200 <= answer.status < 300]


async def _finished(work: Awaitable[T]) -> T:
    """Await `work`; where that is cancelled, give it some seconds to end first."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=_GRACE_S)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise
