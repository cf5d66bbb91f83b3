"""`http://` and `https://`: one POST for each message or batch over one kept aiohttp session.

Foreign errors end here: everything aiohttp, a socket or TLS can raise becomes `Unavailable` or `Refused`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from aevents import batch, retry
from aevents.answer import ANSWER_BYTES, Receipt
from aevents.errors import DeliveryError, NotTogether, Refused, Unavailable
from aevents.event import Event, Message
from aevents.settings import conf
from aevents.transports.base import Destination, Transport
from aevents.transports.connection import Connector, Errand
from aevents.transports.names import is_loopback
from aevents.transports.offers import Offers
from aevents.transports.tls import Contexts, is_about_our_certificate
from aevents.wire import stamp

# Below the shortest keep-alive among common servers (gunicorn: 2 s), lest a POST meets a closed door.
_KEEP_ALIVE_S = 1.5
_DNS_TTL_S = 10
_URL = re.compile(r"\bhttps?://\S+", re.IGNORECASE)
_CONTEXT = re.compile(r" ssl:<[^>]*>")  # where it lies in memory, as aiohttp tells it
_ANSWER_S = 1.0  # for the rest of an answer whose status is known
_logger = logging.getLogger("aevents")


class _Reply(NamedTuple):
    """What came back, `body` no longer than what is read of one; and whether that was all."""

    status: int
    body: bytes
    is_whole: bool
    retry_after: str | None
    accept_post: str | None


class HttpTransport(Transport):
    """POSTs to the destination's URL. 2xx is delivered as soon as the status line is in."""

    can_send_batches = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}
        self._offers = Offers()
        self._tls = Contexts()

    @classmethod
    def mistake_in(cls, url: str) -> str | None:
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 - parsed when asked for
            host = URL(url).raw_host
        except ValueError:  # whose text may repeat a part of the password
            return "it is no URL (what is special in a password must be percent-encoded)"
        if parts.scheme.lower() not in ("http", "https"):
            return "it must begin with http:// or https://"
        if not host or not parts.hostname or any(c.isspace() for c in parts.hostname):
            return "it has no host"
        return None

    @classmethod
    def is_open_to_others(cls, url: str) -> bool:
        parts = urlsplit(url)
        return parts.scheme.lower() == "http" and not is_loopback(parts.hostname or "")

    async def send(self, destination: Destination, message: Message) -> Receipt:
        reply = await self._ask(destination, message)
        return retry.judge(reply.status, reply.body, reply.retry_after)

    def takes_batches(self, destination: Destination) -> bool:
        return destination in self._offers

    async def send_batch(
        self, destination: Destination, events: Sequence[Event]
    ) -> list[Receipt | DeliveryError]:
        reply = await self._ask(destination, batch.encode(events))
        body = reply.body if reply.is_whole else None
        try:
            return batch.judge(reply.status, body, reply.retry_after, [event.id for event in events])
        except NotTogether:
            self._offers.withdraw(destination)
            raise

    async def close(self) -> None:
        self._tls.close()
        if self._session is not None:
            await self._session.close()

    async def _ask(self, destination: Destination, message: Message) -> _Reply:
        url = self._url(destination)
        tls: ssl.SSLContext | bool = True
        if destination.ca or destination.cert:
            tls = await self._tls.of(destination)
        headers = stamp(message, destination.keys)
        while True:
            errand = Errand.begin()
            try:
                reply = await self._post(url, tls, headers, message.body)
            except Exception as error:
                # What failed is kept no longer: this ends with a new connection at the latest.
                if not errand.met_a_closed_door(error):
                    raise _mapped(error, destination) from error
            else:
                self._offers.note(destination, reply.accept_post)
                return reply

    async def _post(
        self, url: URL, tls: ssl.SSLContext | bool, headers: Mapping[str, str], body: bytes
    ) -> _Reply:
        session = self._session or self._open()
        # A renewed context has connections of its own: those of the old one are not used again.
        post = session.post(url, data=body, headers=headers, ssl=tls, allow_redirects=False)
        async with post as response:
            answer = await _beginning_of(response)
            content, said = response.content, response.headers
            is_whole = content.is_eof() and content.exception() is None
            return _Reply(response.status, answer, is_whole, said.get("Retry-After"), said.get("Accept-Post"))

    def _url(self, destination: Destination) -> URL:
        url = self._urls.get(destination.url)
        if url is None:
            mistake = self.mistake_in(destination.url)
            if mistake is not None:
                raise Refused(f"the URL of {destination.name!r} cannot be used: {mistake}")
            url = self._urls[destination.url] = URL(destination.url)
        return url

    def _open(self) -> aiohttp.ClientSession:
        limits = conf().LIMITS
        self._session = aiohttp.ClientSession(
            connector=Connector(
                limit=0,  # the lanes bound what is in flight; a shared bound lets one host starve all
                keepalive_timeout=_KEEP_ALIVE_S,
                ttl_dns_cache=_DNS_TTL_S,
            ),
            timeout=aiohttp.ClientTimeout(total=limits.ATTEMPT_S, sock_connect=limits.CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "aevents", "Accept": "application/json"},
            request_class=_Request,
            auto_decompress=False,
            trust_env=False,
        )
        return self._session


class _Request(aiohttp.ClientRequest):
    """Adds no header that was not asked for (`skip_auto_headers` costs a twentieth of a request)."""

    DEFAULT_HEADERS = {}  # noqa: RUF012 - as aiohttp declares it


async def _beginning_of(response: aiohttp.ClientResponse) -> bytes:
    """Return the answer's first bytes; a body that is late, broken or long changes no status."""
    content = response.content
    if content.is_eof():
        return content.read_nowait()
    parts: list[bytes] = []
    size = 0
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError, ValueError):
        async with asyncio.timeout(_ANSWER_S):
            while size < ANSWER_BYTES and (part := await content.readany()):
                parts.append(part)
                size += len(part)
    if not content.at_eof():
        response.close()
    return b"".join(parts)[:ANSWER_BYTES]


def _mapped(error: Exception, destination: Destination) -> Exception:
    """Return what `error` means for the event. The order counts: aiohttp's errors are relatives."""
    if isinstance(error, DeliveryError):
        return error
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)):
        return Unavailable(_text(error), slowly=True)  # heals when the certificate is renewed
    if is_about_our_certificate(error.__cause__):
        return Unavailable(_text(error), slowly=True)
    if isinstance(error, aiohttp.InvalidURL):
        return Refused(_text(error))
    if isinstance(error, (aiohttp.ClientError, TimeoutError, OSError)):
        # ClientResponseError with status 400 is made up by aiohttp for garbage: no status is read here.
        return Unavailable(_text(error), timed_out=isinstance(error, TimeoutError))
    if isinstance(error, (ValueError, TypeError)):  # a header or host that cannot be written
        return Refused(_text(error))
    _logger.error("A try to deliver to %s failed in an unknown way", destination.name, exc_info=error)
    return Unavailable(_text(error))


def _text(error: Exception) -> str:
    if type(error) is aiohttp.ClientConnectorError:
        number = error.os_error.errno or 0
        reason = os.strerror(number) if number > 0 else str(error.os_error)
        return f"Cannot connect to host {error.host}:{error.port}: {reason}"
    # aiohttp puts whole URLs into its messages, and a URL may hold a token; some have several lines.
    text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    text = " ".join(_CONTEXT.sub("", _URL.sub("<url>", text)).split())
    return f"{type(error).__name__}: {text[:200]}".removesuffix(": ")
