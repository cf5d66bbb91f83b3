"""One connection of those that a `tcp` listener has: frames in, requests to `take`, answers out.

What has come in one piece is taken together, and the next piece meanwhile. All that is kept of who has shown
nothing yet is bounded: bytes, requests, and the time for each.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from aevents.answer import Answer
from aevents.errors import MalformedMessage
from aevents.event import Message
from aevents.loops import start_task
from aevents.settings import conf
from aevents.transports.base import Brought, Take
from aevents.transports.frames import (
    PREFACE,
    Frame,
    Garbage,
    Reader,
    keep_alive,
    largest,
    message_of,
    pack_answer,
    refusal_of,
)

_REQUESTS = 16  # times `IN_FLIGHT`, of one connection at a time
_AT_A_TIME = 32  # requests of one connection; the client reads its answers while the next are taken
_BYTES_BESIDE_A_FRAME = 1024
_FORGOTTEN_BYTES = 8 * 1024 * 1024  # of who is told that nothing more is taken
_FAILED = Answer(503, {"detail": "The event could not be handled here; the log says why."})
_NO_FRAME = Answer(400, {"detail": "What came is no frame."})
_NO_PREFACE = Answer(400, {"detail": "What came does not begin as aevents over TCP does."})
_NOT_IN_TIME = Answer(408, {"detail": "The rest of a frame did not come in time."})
_NOT_HTTP = "This is aevents over TCP and no HTTP: write tcp:// in the URL, and no path."
_HTTP = (
    "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\n"
    "connection: close\r\n\r\n{}"
)
_logger = logging.getLogger("aevents")


class Desk:
    """Where the requests of all connections of one listener are taken, and what they hold together."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self.tasks: set[asyncio.Task[None]] = set()
        self.callers: set[Caller] = set()
        self.held_bytes = 0

    def begin(self, caller: Caller, frames: Sequence[Frame], messages: Sequence[Message]) -> None:
        """Let requests be taken, and answered when they are."""
        self.keep(start_task(self._answer(caller, frames, list(map(Brought, messages)))))

    def room(self) -> int:
        """Return the size of the largest frame that can be held beside all that is."""
        return max(0, int(conf().LIMITS.WAITING_BYTES) - self.held_bytes)

    def keep(self, task: asyncio.Task[None]) -> None:
        """Know of a task until it is done: the loop itself holds tasks weakly."""
        if not task.done():
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _answer(self, caller: Caller, frames: Sequence[Frame], brought: Sequence[Brought]) -> None:
        answers: list[bytes] = []
        try:
            taken = await self._take(brought)
            answers = [pack_answer(frame.id, answer) for frame, answer in zip(frames, taken, strict=True)]
        except Exception:
            _logger.exception("What came over TCP could not be taken")
            answers = [pack_answer(frame.id, _FAILED) for frame in frames]
        finally:
            caller.answered(frames, answers)


class Caller(asyncio.Protocol):
    """One client's connection: so many of its requests are taken together, and answered in any order."""

    def __init__(self, desk: Desk, *, is_tls: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._desk = desk
        self._is_tls = is_tls
        self._transport: Any = None
        self._preface = b""
        self._reader = Reader()
        self._waiting: deque[Frame] = deque()
        self._under_way = 0
        self._answers: list[bytes] = []
        self._is_beginning = self._is_full = self._is_paused = False
        self._has_ended = self._is_deaf = self._is_silent = False  # by its word; no more is taken, or said
        self._forgotten = 0
        self.heard_at = self._slow_since = time.monotonic()

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it is under way."""
        return self._is_done and not self._reader.is_within_a_frame

    @property
    def _is_done(self) -> bool:
        return not (self._under_way or self._waiting or self._answers)

    def say(self, *frames: bytes) -> None:
        """Send these, with all else that is to be sent in this turn of the loop."""
        if self._is_silent or self._transport.is_closing():
            return
        if not self._answers:
            self._loop.call_soon(self._flush)
        self._answers += frames

    def answered(self, frames: Sequence[Frame], answers: Sequence[bytes]) -> None:
        """Send the answers to requests, and go on with what waits."""
        self._under_way -= len(frames)
        self._desk.held_bytes -= sum(map(_weight, frames))
        self.say(*answers)
        if self._waiting and not self._is_beginning:
            self._begin()

    def look(self, since: float) -> None:
        """End it where it owes the rest of a frame since before then, or does not read its answers."""
        if self._slow_since >= since:
            return
        if self._is_full or self._is_deaf:
            self.leave()
        elif not self._is_paused and (self._is_new or self._reader.is_within_a_frame):
            self._dismiss(_NOT_IN_TIME)

    def leave(self) -> None:
        """End it at once."""
        self._transport.abort()

    # What comes

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        keep_alive(transport)
        self._desk.callers.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._is_deaf = True
        self._desk.held_bytes -= self._reader.kept_bytes
        self._drop_what_waits()
        self._answers.clear()
        self._desk.callers.discard(self)

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        if self._is_deaf:
            self._forgotten += len(data)
            if self._forgotten > _FORGOTTEN_BYTES:
                self.leave()
            return
        if self._is_new:
            data = self._greet(data)
        if data:
            self._read(data)

    def eof_received(self) -> bool:
        """Tell whether to stay, for the answers to who has no more to ask."""
        is_to_stay = not (self._is_tls or self._is_deaf or self._is_done)
        self._has_ended = True
        self._be_deaf()
        return is_to_stay

    @property
    def _is_new(self) -> bool:
        return len(self._preface) < len(PREFACE)

    def _greet(self, data: bytes) -> bytes:
        """Take the preface; return what follows it."""
        missing = len(PREFACE) - len(self._preface)
        self._preface += data[:missing]
        if PREFACE.startswith(self._preface):
            return data[missing:]
        if self._preface.startswith(PREFACE[:-1]):
            self._dismiss(Answer(505, {"detail": f"Version {PREFACE[-1]} is spoken here."}))
        elif self._preface[:1].isupper():
            body = Answer(400, {"detail": _NOT_HTTP}).body.decode()
            self._hang_up(_HTTP.format(len(body), body).encode())
        else:
            self._dismiss(_NO_PREFACE)
        return b""

    def _read(self, data: bytes) -> None:
        reader, desk = self._reader, self._desk
        was_within, kept = reader.is_within_a_frame, reader.kept_bytes
        at_most = min(largest(int(conf().LIMITS.BODY_BYTES)), desk.room() + kept)
        try:
            frames = reader.feed(data, at_most)
            if not all(frame.id for frame in frames):
                raise Garbage
        except Garbage:
            desk.held_bytes += reader.kept_bytes - kept
            self._dismiss(_NO_FRAME)
            return
        desk.held_bytes += reader.kept_bytes - kept + sum(map(_weight, frames))
        if frames or not was_within:
            self._slow_since = self.heard_at
        if frames:
            self._waiting.extend(frames)
            if not self._is_beginning:
                self._begin()
            self._flush()

    def _begin(self) -> None:
        """Let what waits be taken, as much as may be at a time; what is over that is not read."""
        most = _REQUESTS * int(conf().LIMITS.IN_FLIGHT)
        self._is_beginning = True
        count = min(len(self._waiting), most - self._under_way, _AT_A_TIME)
        if count > 0:
            self._take([self._waiting.popleft() for _ in range(count)])
        self._is_beginning = bool(self._waiting) and self._under_way < most
        if self._is_beginning:  # after others had their turn, as none of these may have had to wait
            self._loop.call_soon(self._begin)
        self._pace()

    def _take(self, found: Sequence[Frame]) -> None:
        frames, messages = [], []
        for frame in found:
            try:
                messages.append(message_of(frame))
                frames.append(frame)
            except MalformedMessage as error:
                self.say(pack_answer(frame.id, refusal_of(error)))
                self._desk.held_bytes -= _weight(frame)
        if frames:
            self._under_way += len(frames)
            self._desk.begin(self, frames, messages)

    def _pace(self) -> None:
        """Read no more while much waits, or while its answers are not read."""
        is_paused = self._is_full or len(self._waiting) > _AT_A_TIME
        if is_paused is self._is_paused or self._is_deaf or self._transport.is_closing():
            return
        self._is_paused = is_paused
        if is_paused:
            self._transport.pause_reading()
        else:
            self._slow_since = time.monotonic()
            self._transport.resume_reading()

    # What goes

    def pause_writing(self) -> None:
        self._is_full = True
        self._slow_since = time.monotonic()
        self._pace()

    def resume_writing(self) -> None:
        self._is_full = False
        self._pace()

    def _flush(self) -> None:
        if self._answers:
            answers = b"".join(self._answers)
            self._answers.clear()
            self._transport.write(answers)
        if self._is_deaf and self._is_done:
            self._say_no_more()

    def _dismiss(self, answer: Answer) -> None:
        self._hang_up(pack_answer(0, answer))

    def _hang_up(self, last: bytes) -> None:
        """Say this last. What comes still is forgotten, so that the client gets to read it."""
        self._be_deaf()
        self._drop_what_waits()
        self.say(last)

    def _be_deaf(self) -> None:
        self._is_deaf = True
        self._slow_since = time.monotonic()

    def _say_no_more(self) -> None:
        # A close while it still sends is a reset, which would take from it what it was told.
        self._is_silent = True
        if self._is_tls or self._has_ended:
            self._transport.close()
            return
        try:
            self._transport.write_eof()
        except OSError:  # it has left
            self.leave()

    def _drop_what_waits(self) -> None:
        self._desk.held_bytes -= sum(map(_weight, self._waiting))
        self._waiting.clear()


def _weight(frame: Frame) -> int:
    return 0 if frame.body is None else frame.size + _BYTES_BESIDE_A_FRAME
