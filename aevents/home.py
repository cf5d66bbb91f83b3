"""The loop where handlers live: the server's, once it is known, else one of this process's own."""

from __future__ import annotations

import asyncio
import weakref

from aevents.loops import LoopThread

_GRACE_S = 1.0


class Home:
    """Knows the loop. `loop` may be asked by any thread."""

    def __init__(self) -> None:
        self._server: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._own = LoopThread("aevents-handlers")

    def adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take a server's loop, which lives as long as the server."""
        if self._server is None or self._server() is not loop:
            self._server = weakref.ref(loop)

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop, running; raises `RuntimeError` where there is none and none can be started."""
        server = self._server() if self._server is not None else None
        if server is not None and server.is_running():
            return server
        return self._own.start()

    def end(self) -> None:
        """Cancel what still runs on our own loop."""
        self._own.stop(_GRACE_S)

    def forget(self) -> None:
        """Forget the server's, in the child of a fork."""
        self._server = None
