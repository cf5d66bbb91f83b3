"""`tcp://host:port` and `tcps://host:port`: messages straight to a service, over one kept connection.

No broker and no HTTP stand in between; `frames` says what goes over the wire. Foreign errors end here:
everything a socket or TLS can raise becomes `Unavailable` or `Refused`.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import orjson

from aevents import batch, retry
from aevents.answer import Receipt
from aevents.errors import DeliveryError, NotTogether, Refused, Unavailable
from aevents.event import Event, Message
from aevents.settings import conf
from aevents.transports import tls
from aevents.transports.base import Destination, Take, Transport, Wanted
from aevents.transports.names import Names, is_loopback
from aevents.transports.offers import Offers
from aevents.transports.tcp_client import Address, Line, Lost, Reply, hosts_of
from aevents.transports.tcp_server import Identity, Listener, bound
from aevents.wire import stamp

_CONNECTIONS = 1000
_logger = logging.getLogger("aevents")


class TcpTransport(Transport):
    """Asks the service at the destination's address, and serves at a place of `LISTEN`.

    Options of who listens: `CERT` and `CA` of `tcps`, as those of a service, where a `CA` lets in only
    clients that show a certificate of it; `REUSE_PORT`, for several processes at one address; `CONNECTIONS`,
    so many at the most (1000).
    """

    can_send_batches = True
    can_listen = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._names = Names()
        self._lines: dict[tuple[str, str, tuple[str, ...]], Line] = {}
        self._offers = Offers()
        self._tls = tls.Contexts(tls.load_of_client)

    @classmethod
    def mistake_in(cls, url: str) -> str | None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            (host or "").encode("idna")
        except ValueError:  # whose text may repeat a part of what is no port
            return "it is no URL"
        if parts.scheme.lower() not in ("tcp", "tcps"):
            return "it must begin with tcp:// or tcps://"
        if "@" in parts.netloc:
            return "it holds a user or a password, and nobody would be told of them"
        if not host or not port or any(c.isspace() for c in host):
            return "it must name a host and a port, as tcp://payments.internal:7000"
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            return "it has more than a host and a port"
        return None

    @classmethod
    def is_open_to_others(cls, url: str) -> bool:
        parts = urlsplit(url)
        return parts.scheme.lower() == "tcp" and not is_loopback(parts.hostname or "")

    async def send(self, destination: Destination, message: Message) -> Receipt:
        reply = await self._ask(destination, message)
        return retry.judge(reply.status, reply.body, reply.retry_after)

    def takes_batches(self, destination: Destination) -> bool:
        return destination in self._offers

    async def send_batch(
        self, destination: Destination, events: Sequence[Event]
    ) -> list[Receipt | DeliveryError]:
        reply = await self._ask(destination, batch.encode(events))
        try:
            return batch.judge(reply.status, reply.body, reply.retry_after, [event.id for event in events])
        except NotTogether:
            self._offers.withdraw(destination)
            raise

    async def close(self) -> None:
        self._tls.close()
        for line in self._lines.values():
            await line.close()
        await self._names.close()

    async def listen(self, place: Destination, wanted: Wanted, take: Take) -> None:
        """Serve at the place's address until cancelled, and then bring what is being taken to its end.

        What comes is what others send here: `wanted` chooses nothing.
        """
        address = _address_of(place)
        identity = Identity(self.options, is_needed=address.is_tls)
        try:
            await identity.context()  # or who cannot show anything would let all come in vain
            hosts = await hosts_of(address, self._names)
            listening = bound(hosts, address.port, is_shared=self.options.get("REUSE_PORT") is True)
            await Listener(take, identity, int(self.options.get("CONNECTIONS", _CONNECTIONS))).serve(
                listening
            )
        except (OSError, ValueError) as error:
            raise Unavailable(f"cannot listen at {address}: {_reason(error)}") from error
        finally:
            identity.close()

    async def _ask(self, destination: Destination, message: Message) -> Reply:
        ends_at = time.monotonic() + conf().LIMITS.ATTEMPT_S
        line = self._line(destination)
        try:
            headers = orjson.dumps(stamp(message, destination.keys))
            context = await self._tls.of(destination) if line.address.is_tls else None
            reply = await _answer(line, context, headers, message.body, ends_at)
        except Exception as error:
            raise _mapped(error, line.address, destination) from error
        self._offers.note(destination, reply.accept_post)
        return reply

    def _line(self, destination: Destination) -> Line:
        key = destination.url, destination.ca, destination.cert
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(_address_of(destination), self._names)
        return line


async def _answer(
    line: Line, context: ssl.SSLContext | None, headers: bytes, body: bytes, ends_at: float
) -> Reply:
    connection = line.kept(context)
    if connection is not None:
        try:
            return await connection.ask(headers, body, ends_at)
        except Lost as lost:
            if not lost.was_idle:
                return _last_word(lost)
            # The server may just have closed an idle connection: once more at once, see `connection`.
    connection = line.kept(context) or await line.connect(context, ends_at)
    try:
        return await connection.ask(headers, body, ends_at)
    except Lost as lost:
        return _last_word(lost)


def _last_word(lost: Lost) -> Reply:
    if lost.reply is None:
        raise lost
    return lost.reply


def _address_of(destination: Destination) -> Address:
    mistake = TcpTransport.mistake_in(destination.url)
    if mistake is not None:
        raise Refused(f"the URL of {destination.name!r} cannot be used: {mistake}")
    parts = urlsplit(destination.url)
    return Address(parts.hostname or "", parts.port or 0, parts.scheme.lower() == "tcps")


def _mapped(error: Exception, address: Address, destination: Destination) -> Exception:
    """Return what `error` means for the event. The order counts: the errors are relatives."""
    if isinstance(error, DeliveryError):
        return error
    if isinstance(error, Lost):
        is_slow = error.is_misplaced or tls.is_about_our_certificate(error.__cause__)
        return Unavailable(f"{address}: {error}", slowly=is_slow)
    if isinstance(error, TimeoutError):
        return Unavailable(f"{address}: {str(error) or 'no connection in time'}", timed_out=True)
    if isinstance(error, ssl.SSLError):  # heals when a certificate is renewed, or the URL mended
        return Unavailable(f"{address}: {_reason(error)}", slowly=True)
    if isinstance(error, OSError):
        return Unavailable(f"Cannot connect to {address}: {_reason(error)}")
    if isinstance(error, (ValueError, TypeError)):  # a header that cannot be written
        return Refused(f"{type(error).__name__}: {error!s:.200}")
    _logger.error("A try to deliver to %s failed in an unknown way", destination.name, exc_info=error)
    return Unavailable(f"{type(error).__name__}: {error!s:.200}")


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None) or 0
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and number > 0:
        return os.strerror(number)
    return " ".join(str(error).split())[:200] or type(error).__name__
