"""The receiving end of `tcp`: where connections come in, how many at a time, and how all of it ends.

What comes over each of them is the affair of `tcp_caller`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aevents.answer import Answer
from aevents.errors import Refused
from aevents.settings import conf
from aevents.transports import tls
from aevents.transports.base import Destination, Take
from aevents.transports.frames import pack_answer
from aevents.transports.tcp_caller import Caller, Desk

_BACKLOG = 128
_PAUSE_S = 0.1  # before the next connection is taken, where this process has no file left for one
_GRACE_S = 5.0  # for what is being taken when the end is asked for
_FAREWELL_S = 1.0  # in which a client is to have heard of the end
_LOOK_AT_THE_END_S = 0.01
_TURNS = 100
_LOOK_EVERY_S = 0.5
_WARN_EVERY_S = 60.0
_ENDS = Answer(503, {"detail": "This process ends: ask again over a new connection."})
_logger = logging.getLogger("aevents")


class Identity:
    """What the server shows of itself and wants to be shown, renewed as its files are."""

    def __init__(self, options: Mapping[str, Any], *, is_needed: bool) -> None:
        self._contexts: tls.Contexts | None = None
        if is_needed:
            ca, cert = _files(options)
            self._files = Destination("tcps", "", ca=ca, cert=cert)
            self._contexts = tls.Contexts(tls.load_of_server, "TRANSPORTS")

    async def context(self) -> ssl.SSLContext | None:
        """Return the context for a new connection, None for one without TLS; raises `Unavailable`."""
        return None if self._contexts is None else await self._contexts.of(self._files)

    def close(self) -> None:
        """Look at the files no more."""
        if self._contexts is not None:
            self._contexts.close()


def _files(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    try:
        ca, cert = tls.files_of(options.get("CA"), options.get("CERT"))
    except ValueError as error:
        raise Refused(f"AEVENTS['TRANSPORTS']['tcps']: {error}") from None
    if not cert:
        raise Refused("AEVENTS['TRANSPORTS']['tcps'] needs the server's certificate: 'CERT', a path or two")
    return ca, cert


def bound(hosts: Sequence[str], port: int, *, is_shared: bool) -> list[socket.socket]:
    """Return sockets that listen there; raises `OSError`, having closed those that did."""
    with contextlib.ExitStack() as stack:
        found = []
        for host in hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            # SO_REUSEADDR is set where it does what it does on Linux; an IPv6 address takes no IPv4.
            listening = socket.create_server(
                (host, port), family=family, backlog=_BACKLOG, reuse_port=is_shared
            )
            found.append(stack.enter_context(listening))
            listening.setblocking(False)
        stack.pop_all()
    return found


class Listener:
    """Serves until it is cancelled. Used once."""

    def __init__(self, take: Take, identity: Identity, most_connections: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._desk = Desk(take)
        self._identity = identity
        self._most = most_connections
        self._arriving = 0
        self._warned_at = -_WARN_EVERY_S

    async def serve(self, listening: Sequence[socket.socket]) -> None:
        """Take connections, and what comes over them; when cancelled, bring that to its end and close."""
        for each in listening:
            self._loop.add_reader(each, self._accept, each)
        try:
            await self._look_on()
        finally:
            for each in listening:
                self._loop.remove_reader(each)
                each.close()
            try:
                await self._part()
            finally:
                await self._end()

    async def _look_on(self) -> None:
        while True:
            limit_s = conf().LIMITS.ATTEMPT_S
            await asyncio.sleep(min(_LOOK_EVERY_S, limit_s))
            since = time.monotonic() - limit_s
            for caller in list(self._desk.callers):
                caller.look(since)

    # Who comes, and the end

    def _accept(self, listening: socket.socket) -> None:
        # By hand: a task that waits for it, when it is cancelled, may drop whom it has just let in.
        try:
            arrived, _ = listening.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:  # no more files for this process
            self._loop.remove_reader(listening)
            self._loop.call_later(_PAUSE_S, self._accept_again, listening)
            return
        arrived.setblocking(False)
        if self._has_a_place():
            self._arriving += 1
            self._desk.keep(self._loop.create_task(self._welcome(arrived)))
        else:
            arrived.close()

    def _accept_again(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            self._loop.add_reader(listening, self._accept, listening)

    def _has_a_place(self) -> bool:
        """Tell whether one more may come, where need be in place of who has been silent the longest."""
        if len(self._desk.callers) + self._arriving < self._most:
            return True
        idle = [caller for caller in self._desk.callers if caller.is_idle]
        if idle:
            min(idle, key=lambda caller: caller.heard_at).leave()
            return True
        now = time.monotonic()
        if now >= self._warned_at + _WARN_EVERY_S:
            self._warned_at = now
            _logger.warning("All %d connections over TCP are in use: others are turned away", self._most)
        return False

    async def _welcome(self, arrived: socket.socket) -> None:
        limits = conf().LIMITS
        try:
            async with asyncio.timeout(limits.CONNECT_S + limits.ATTEMPT_S):
                context = await self._identity.context()
                await self._loop.connect_accepted_socket(
                    lambda: Caller(self._desk, is_tls=context is not None), arrived, ssl=context
                )
        except BaseException as error:
            arrived.close()
            if not isinstance(error, Exception):  # a handshake that fails is the client's affair
                raise
        finally:
            self._arriving -= 1

    async def _part(self) -> None:
        """Say goodbye to all, and wait until they have left, or have been given the time to."""
        for caller in list(self._desk.callers):
            caller.say(pack_answer(0, _ENDS))
        began = time.monotonic()
        while self._desk.callers and (lasted_s := time.monotonic() - began) < _GRACE_S:
            for caller in list(self._desk.callers):
                if lasted_s > _FAREWELL_S and caller.is_idle:
                    caller.leave()
            await asyncio.sleep(_LOOK_AT_THE_END_S)

    async def _end(self) -> None:
        for caller in list(self._desk.callers):
            caller.leave()
        left = list(self._desk.tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for _ in range(_TURNS):  # in which transports end
            if self._desk.callers:
                await asyncio.sleep(0)
