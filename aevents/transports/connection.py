"""The connections of `http`: a connector in, each connection guarded and checked before it is used again.

What aiohttp keeps to itself is only touched by `guard`; where a release of aiohttp no longer has it,
its own connections are used, each for one request.
"""

from __future__ import annotations

import logging
import select
import threading
import time
import weakref
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import aiohttp

from aevents.transports.names import Names

_AT_ONCE_S = 1.0  # a kept connection that is lost later than that had not been idle
_logger = logging.getLogger("aevents")
_has_warned = threading.Event()


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
    """Gives out connections over which nothing came that was not asked for.

    Else what came would be taken for the answer to the next request: an event lost that counts as
    delivered. A connection that is not guarded is therefore used only once.
    """

    def __init__(self, **options: Any) -> None:
        self._names = Names()
        self._used: weakref.WeakSet[Any] = weakref.WeakSet()
        self._guard = _rehearsed_guard(self._names)
        if self._guard is None:
            options.pop("keepalive_timeout", None)
            options["force_close"] = True
        super().__init__(resolver=self._names, **options)
        if self._guard is not None:
            self._guard.put_into(self)

    async def connect(self, *given: Any, **named: Any) -> Any:
        """Return a new connection, or a kept one that is as good."""
        while True:
            connection = await super().connect(*given, **named)
            is_kept = connection.protocol in self._used
            if not is_kept or self._is_as_good_as_new(connection):
                self._used.add(connection.protocol)
                errand = _under_way.get(None)
                if errand is not None:
                    errand.is_over_a_kept_connection = is_kept
                return connection
            connection.close()

    async def close(self, *, abort_ssl: bool = False) -> None:
        await super().close(abort_ssl=abort_ssl)
        await self._names.close()

    def _is_as_good_as_new(self, kept: Any) -> bool:
        if self._guard is None:
            return False
        if not isinstance(kept.protocol, self._guard.GuardedConnection):
            _tell_of("its connections are made elsewhere")
            return False
        return not _has_something_to_say(kept.transport)


def _imported_guard() -> ModuleType | Exception:
    try:
        from aevents.transports import guard
    except Exception as error:  # what it imports of aiohttp has gone
        return error
    return guard


# Now and not at the first event: a fork in the midst of an import would leave the child half a module.
_guard = _imported_guard()


def _rehearsed_guard(names: Names) -> ModuleType | None:
    """Return the module, or None and a warning where it does not hold with this aiohttp."""
    guard = _guard
    if not isinstance(guard, Exception):
        try:
            guard.rehearse(aiohttp.TCPConnector(resolver=names))
        except Exception as error:
            guard = error
    if isinstance(guard, Exception):
        _tell_of(f"{type(guard).__name__}: {guard}")
        return None
    return guard


def _tell_of(change: str) -> None:
    if not _has_warned.is_set():
        _has_warned.set()
        _logger.warning(
            "aiohttp %s is not as this version of aevents knows it (%s): each connection is used for one"
            " event only, and a service may answer without end. Look for a newer aevents.",
            aiohttp.__version__,
            change,
        )


def _has_something_to_say(transport: Any) -> bool:
    """Tell whether an idle connection has ended, or more has come over it that the loop has not seen yet."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _is_a_lost_connection(error: Exception) -> bool:
    # The rule of aiohttp itself. No errno is asked for: what it says of a write has none.
    lost = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, ConnectionError)
    return isinstance(error, lost) and not isinstance(error, aiohttp.ClientConnectorError)
