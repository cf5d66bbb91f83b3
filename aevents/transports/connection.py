"""The connections of `http`: aiohttp's, with a guard against what a server may do to them."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError
from aiohttp.resolver import ThreadedResolver

from aevents.threads import DaemonPool

ANSWER_BYTES = 64 * 1024  # of one answer, head and body, as they come over the wire
_LOOK_UPS = 8  # names at once; aiohttp asks for each only once at a time
_FORK_WAITS_S = 0.5
_AT_ONCE_S = 1.0  # a kept connection that is lost later than that had not been idle
_END_OF_HEAD = b"\r\n\r\n"


@dataclass
class Errand:
    """One POST: when it began, and whether over a connection that was kept from an earlier one."""

    began: float = field(default_factory=time.monotonic)
    is_over_a_kept_connection: bool = False

    @classmethod
    def begin(cls) -> Errand:
        """Return a new one, which the connection that this task gets will find."""
        errand = cls()
        _under_way.set(errand)
        return errand

    def met_a_closed_door(self, error: Exception) -> bool:
        """Tell whether the server may just have closed an idle connection: then once more at once is due.

        aiohttp does so by itself for idempotent methods (RFC 9110, section 9.2.2); ours is as good as
        one, since the event's id is the same both times.
        """
        return (
            self.is_over_a_kept_connection
            and time.monotonic() - self.began < _AT_ONCE_S
            and _is_a_lost_connection(error)
        )


# From an errand to its connection; aiohttp is in between. (Its traces would cost a tenth of a request.)
_under_way: ContextVar[Errand] = ContextVar("aevents.errand")


class Connector(aiohttp.TCPConnector):
    """Makes such connections, and looks up their names."""

    def __init__(self, **options: Any) -> None:
        self._look_ups = _LookUps()
        super().__init__(resolver=ThreadedResolver(cast(Any, self._look_ups)), **options)
        self._factory: Any = functools.partial(_Connection, loop=self._loop)

    async def close(self, *, abort_ssl: bool = False) -> None:
        await super().close(abort_ssl=abort_ssl)
        self._look_ups.threads.shutdown(wait=False)


class _Connection(ResponseHandler):
    """Takes one answer for each request, of that no more than its beginning, and nothing unasked.

    aiohttp alone takes what came over an idle connection for the answer to the next request, and
    reads empty lines, `100 Continue` or the extensions of a chunk without end.
    """

    _left = 0
    _is_asked = _is_kept = False

    def set_response_params(self, **params: Any) -> None:
        errand = _under_way.get(None)
        if errand is not None:
            errand.is_over_a_kept_connection = self._is_kept
        self._left = ANSWER_BYTES
        self._is_asked = self._is_kept = True
        super().set_response_params(**params)

    def feed_data(self, data: Any, size: int = 0) -> None:
        message, body = data
        if message.code >= 200:
            body.on_eof(self._note_the_end)
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        if data and not self._is_asked:  # no data: aiohttp resumes its own reading
            self.abort()  # so that it is not used again
            return
        taken = data[: self._left]
        self._left -= len(taken)
        # The head by itself: aiohttp drops it where what follows in the same piece is broken.
        head_ends = taken.find(_END_OF_HEAD) + len(_END_OF_HEAD)
        if len(_END_OF_HEAD) <= head_ends < len(taken):
            super().data_received(taken[:head_ends])
            taken = taken[head_ends:]
        super().data_received(taken)
        if self._left == 0:
            self._end()

    def _end(self) -> None:
        if self._is_asked and self.transport is not None:
            # Not self.abort(): that forgets the error. A body that has begun just ends here.
            self.set_exception(HttpProcessingError(message=f"its head has more than {ANSWER_BYTES} bytes"))
            self.transport.abort()

    def _note_the_end(self) -> None:
        self._is_asked = False


class _LookUps:
    """What aiohttp's resolver asks of a loop, in threads that an exit neither waits for nor takes away."""

    def __init__(self) -> None:
        self.threads = DaemonPool(_LOOK_UPS, "aevents-names")

    async def getaddrinfo(self, host: str, port: int, **options: Any) -> Any:
        return await self._in_a_thread(functools.partial(socket.getaddrinfo, host, port, **options))

    async def getnameinfo(self, address: Any, flags: int) -> Any:
        return await self._in_a_thread(functools.partial(socket.getnameinfo, address, flags))

    async def _in_a_thread(self, look_up: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.threads, _door.pass_through, look_up)


class _Door:
    """Where look-ups go in and out; a fork waits until none is inside, but not for long.

    The C library's locks are copied as they are: a look-up that another thread is in would leave the
    child unable to look up any name, for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._is_shut = False
        os.register_at_fork(before=self._shut, after_in_parent=self._open, after_in_child=self._renew)

    def pass_through(self, look_up: Callable[[], Any]) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_shut)
            self._inside += 1
        try:
            return look_up()
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def _shut(self) -> None:
        with self._changed:
            self._is_shut = True
            self._changed.wait_for(lambda: self._inside == 0, _FORK_WAITS_S)

    def _open(self) -> None:
        with self._changed:
            self._is_shut = False
            self._changed.notify_all()

    def _renew(self) -> None:
        self._changed, self._inside, self._is_shut = threading.Condition(), 0, False


_door = _Door()


def _is_a_lost_connection(error: Exception) -> bool:
    # The rule of aiohttp itself. No errno is asked for: what it says of a write has none.
    lost = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, ConnectionError)
    return isinstance(error, lost) and not isinstance(error, aiohttp.ClientConnectorError)
