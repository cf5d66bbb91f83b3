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
from typing import ClassVar


class Returns:
    """The way back to one event loop: finished calls, all of a moment in one crossing."""

    _of: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Returns]] = weakref.WeakKeyDictionary()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._done: deque[asyncio.Future[None]] = deque()
        self._is_awake = False

    @classmethod
    def to(cls, loop: asyncio.AbstractEventLoop) -> Returns:
        """Return the way back to `loop`."""
        returns = cls._of.get(loop)
        if returns is None:
            with cls._lock:
                # What a loop left unsettled when it ended would keep it for ever.
                for ended in [each for each in cls._of if each.is_closed()]:
                    del cls._of[ended]
                returns = cls._of.setdefault(loop, cls(loop))
        return returns

    @classmethod
    def forget(cls) -> None:
        """Begin anew in the child of a fork: a thread of the parent may have been in the midst of this."""
        cls._of, cls._lock = weakref.WeakKeyDictionary(), threading.Lock()

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
