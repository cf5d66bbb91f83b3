"""The way back from the courier's thread to the loops that wait: futures in, each done on its own loop.

All calls that end in one moment cross together, as each wake costs the threads a fight for the
interpreter's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections import deque
from operator import itemgetter
from typing import ClassVar


class Returns:
    """The way back to one event loop: finished calls, all of a moment in one crossing."""

    _of: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Returns]] = weakref.WeakKeyDictionary()
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _latest: ClassVar[Returns | None] = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._done: deque[asyncio.Future[None]] = deque()
        self._is_awake = False
        # Until when each call is waited for, in the order in which they came: as a rule the first ends first.
        self._waiting: dict[asyncio.Future[None], float] = {}
        self._last_ends = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def to(cls, loop: asyncio.AbstractEventLoop) -> Returns:
        """Return the way back to `loop`."""
        latest = cls._latest
        if latest is not None and latest._loop() is loop:  # the rule: a process has one loop that emits
            return latest
        returns = cls._latest = cls._of.get(loop)
        if returns is None:
            with cls._lock:
                # What a loop left unsettled when it ended would keep it for ever.
                for ended in [each for each in cls._of if each.is_closed()]:
                    del cls._of[ended]
                returns = cls._latest = cls._of.setdefault(loop, cls(loop))
        return returns

    @classmethod
    def forget(cls) -> None:
        """Begin anew in the child of a fork: a thread of the parent may have been in the midst of this."""
        cls._of, cls._lock, cls._latest = weakref.WeakKeyDictionary(), threading.Lock(), None

    async def within(self, timeout_s: float, future: asyncio.Future[None]) -> None:
        """Wait for `future` on its own loop, at most `timeout_s`: then it is done here.

        One timer for all that wait, as thousands a second do, and next to none for so long.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout_s
        if ends < self._last_ends:  # the settings have changed: what is looked at first ends first still
            self._waiting = dict(sorted([*self._waiting.items(), (future, ends)], key=itemgetter(1)))
        else:
            self._last_ends = self._waiting[future] = ends
        if self._timer is None or ends < self._timer.when():
            self._set_timer(loop, ends)
        try:
            await future
        finally:
            del self._waiting[future]

    def _set_timer(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(at, self._end_waits, loop)

    def _end_waits(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, now = None, loop.time()
        for future, ends in self._waiting.items():
            if ends > now:
                self._set_timer(loop, ends)
                return
            if not future.done():
                future.set_result(None)

    def put(self, future: asyncio.Future[None], *, at_once: bool) -> None:
        """Let `future` be done on its own loop; a loop that has gone needs no answer.

        Unless `at_once`, what else the courier's loop finishes in this turn goes along.
        """
        self._done.append(future)
        if self._is_awake:
            return
        self._is_awake = True
        if not at_once:
            with contextlib.suppress(RuntimeError):  # no loop: told by the caller's own thread
                asyncio.get_running_loop().call_soon(self._cross)
                return
        self._cross()

    def _cross(self) -> None:
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._settle)
        except RuntimeError:  # closed
            self._is_awake = False
            self._done.clear()

    def _settle(self) -> None:
        self._is_awake = False
        while self._done:
            future = self._done.popleft()
            if not future.done():
                future.set_result(None)


# By itself: a call asks for its way back before the courier has started, and may be forked there.
os.register_at_fork(after_in_child=Returns.forget)
