"""The guarded connection of `http`: what a server may do to one, and nothing beyond that.

The only module that knows private parts of aiohttp, so that `connection` can do without it: `rehearse`
says before the first use whether they still are what this relies on.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError

from aevents.answer import ANSWER_BYTES

_END_OF_HEAD = b"\r\n\r\n"


class GuardedConnection(ResponseHandler):
    """Takes one answer for each request, of that no more than its beginning, and nothing unasked.

    aiohttp alone takes what came over an idle connection for the answer to the next request, and
    reads empty lines, `100 Continue` or the extensions of a chunk without end.
    """

    _left = 0
    _is_asked = False

    def set_response_params(self, **params: Any) -> None:
        self._left = ANSWER_BYTES
        self._is_asked = True
        super().set_response_params(**params)

    def feed_data(self, data: Any, *size: int) -> None:
        if not self._is_asked:  # it came in one piece with the end of the answer
            self.abort()
            return
        message, body = data
        if message.code >= 200:
            body.on_eof(self._note_the_end)
        super().feed_data(data, *size)

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


def put_into(connector: aiohttp.TCPConnector) -> None:
    """Have `connector` make guarded connections."""
    made: Any = functools.partial(GuardedConnection, loop=asyncio.get_running_loop())
    connector._factory = made


def rehearse(connector: aiohttp.TCPConnector) -> None:
    """Raise unless this aiohttp has every part that is relied on, and the guard holds with it.

    Nothing leaves the process. `connector`: any, to look at.
    """
    loop = asyncio.get_running_loop()
    made: Any = connector._factory
    _hold(isinstance(made(), ResponseHandler), "TCPConnector._factory makes something else")

    connection, wire = _begin(loop)
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n")
    _hold(len(connection) == 1, "an answer is not taken")
    _hold(connection._is_asked, "an answer ends before its body")
    # One at its heels, and one that comes later
    connection.data_received(b"xHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    _hold(wire.is_aborted and len(connection) == 1, "what follows an answer is taken for one")
    connection, wire = _begin(loop)
    connection.data_received(b"HTTP/1.1 204 No Content\r\n\r\n")
    _hold(not wire.is_aborted and not connection._is_asked, "the end of an answer is not seen")
    connection.data_received(b"HTTP/1.1 200 OK\r\n")
    _hold(wire.is_aborted and len(connection) == 1, "what nobody asked for is taken for an answer")

    connection, wire = _begin(loop)
    connection.data_received(b"\r\n" * ANSWER_BYTES)
    _hold(wire.is_aborted and connection.exception() is not None, "an answer may be without end")

    connection, wire = _begin(loop)
    connection.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno chunk\r\n")
    _hold(len(connection) == 1 and connection.should_close, "a head is lost with a broken body")


class _Wire(asyncio.Transport):
    """No wire at all."""

    is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True

    def close(self) -> None:
        return

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return


def _begin(loop: asyncio.AbstractEventLoop) -> tuple[GuardedConnection, _Wire]:
    connection, wire = GuardedConnection(loop), _Wire()
    connection.connection_made(wire)
    connection.set_response_params()
    return connection, wire


def _hold(is_so: bool, else_: str) -> None:
    if not is_so:
        raise RuntimeError(else_)
