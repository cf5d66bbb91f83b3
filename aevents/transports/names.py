"""Host names to addresses for `http` and `tcp`, in threads that an exit neither waits for nor takes away."""

from __future__ import annotations

import asyncio
import codecs
import functools
import ipaddress
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from aevents.settings import conf
from aevents.threads import DaemonPool

_LOOK_UPS = 64  # names at once, as one that hangs keeps its thread; aiohttp asks for each only once at a time
_FORK_WAITS_S = 0.5


class Names(AbstractResolver):
    """Looks names up as every program on this machine does, by `socket.getaddrinfo`."""

    def __init__(self) -> None:
        self._threads = DaemonPool(_LOOK_UPS, "aevents-names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        look_up = functools.partial(
            socket.getaddrinfo,
            host,
            port,
            family=family,
            type=socket.SOCK_STREAM,
            flags=socket.AI_ADDRCONFIG,  # only what this machine has an address to come from
        )
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(conf().LIMITS.CONNECT_S):  # aiohttp's own begins at the first address
            found = await loop.run_in_executor(self._threads, _door.pass_through, look_up)
        return [
            ResolveResult(
                hostname=host,
                host=_host_of(address),
                port=address[1],
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found_family, _, protocol, _, address in found
            if found_family in (socket.AF_INET, socket.AF_INET6)
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False)


def is_loopback(host: str) -> bool:
    """Tell whether what is sent to `host` stays on this machine."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, section 6.3
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(address: tuple[Any, ...]) -> str:
    # (host, port) or (host, port, flow, scope); an address of one link only is none without its scope.
    host, scope = str(address[0]), address[3] if len(address) == 4 else 0
    return f"{host}%{scope}" if scope else host


class Door:
    """Where look-ups go in and out; a fork waits until none is inside, but not for long.

    The C library's locks are copied as they are: a look-up that another thread is in would leave the
    child unable to look up any name, for ever.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew, as in the child of a fork, where no other thread is."""
        self._changed = threading.Condition()
        self._inside = 0
        self._forking: set[int] = set()  # by their threads: several may fork at once

    @property
    def is_open(self) -> bool:
        """Whether nobody forks."""
        return not self._forking

    def pass_through(self, look_up: Callable[[], Any]) -> Any:
        """Call `look_up` as soon as nobody forks."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_open)
            self._inside += 1
        try:
            return look_up()
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def shut(self) -> None:
        """Let nobody in until the calling thread has opened, and wait for who is inside."""
        with self._changed:
            self._forking.add(threading.get_ident())
            self._changed.wait_for(lambda: self._inside == 0, _FORK_WAITS_S)

    def open(self) -> None:
        """Take back what this thread has shut; others may still hold it shut."""
        with self._changed:
            self._forking.discard(threading.get_ident())
            self._changed.notify_all()


# Here rather than at the first connection, which a fork may interrupt: its child would never get the codec.
codecs.lookup("idna")
_door = Door()
os.register_at_fork(before=_door.shut, after_in_parent=_door.open, after_in_child=_door.renew)
