"""What a broker holds for a group: messages in, to who takes them, and their acknowledgements out.

Each broker has a `Source` of its own; `pump` is the same for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
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
    pending: Sequence[Held] = ()
    try:
        while True:
            pending = await (ahead or _fetch(source))
            ahead = asyncio.ensure_future(_fetch(source)) if source.can_fetch_ahead and pending else None
            pause_s = _PAUSE_S
            while pending:
                pending = await _finished(_taken(source, take, pending))
                if pending:
                    await _kept(source, pending, asyncio.sleep(pause_s * random.uniform(0.5, 1.0)))  # noqa: S311
                    pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
    finally:
        left = [*pending, *await _last_of(ahead)]
        if left:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_GRACE_S):
                    await source.release(left)


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


async def _taken(source: Source, take: Take, held: Sequence[Held]) -> Sequence[Held]:
    """Have these taken, and those that are owned forgotten; return the others."""
    answers: Sequence[Answer] = await _kept(source, held, take([each.brought() for each in held]))
    owned = [each for each, answer in zip(held, answers, strict=True) if 200 <= answer.status < 300]
    if owned:
        await source.acknowledge(owned)
    if len(owned) == len(held):
        return ()
    return [each for each, answer in zip(held, answers, strict=True) if not 200 <= answer.status < 300]


async def _kept(source: Source, held: Sequence[Held], work: Awaitable[T]) -> T:
    """Await `work`; tell the broker meanwhile that `held` is in good hands."""
    every_s = source.keep_every_s
    if every_s is None:
        return await work
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=every_s))[0]:
            await source.keep(held)
        return task.result()
    finally:
        if not task.done():
            task.cancel()


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
