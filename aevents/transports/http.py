"""`http://` and `https://`: one POST for each message over one kept aiohttp session.

Foreign errors end here: everything aiohttp, a socket or TLS can raise becomes `Unavailable` or `Refused`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from aevents import retry
from aevents.answer import ANSWER_BYTES, Receipt
from aevents.errors import Refused, Unavailable
from aevents.event import Message
from aevents.settings import conf
from aevents.transports.base import Destination, Transport
from aevents.transports.connection import Connector, Errand
from aevents.wire import stamp

# Below the shortest keep-alive among common servers (gunicorn: 2 s), lest a POST meets a closed door.
_KEEP_ALIVE_S = 1.5
_DNS_TTL_S = 10
_URL = re.compile(r"\bhttps?://\S+", re.IGNORECASE)
_ANSWER_S = 1.0  # for the rest of an answer whose status is known
_logger = logging.getLogger("aevents")


class HttpTransport(Transport):
    """POSTs to the destination's URL. 2xx is delivered as soon as the status line is in."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}

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

    async def send(self, destination: Destination, message: Message) -> Receipt:
        url = self._url(destination)
        headers = stamp(message)
        while True:
            errand = Errand.begin()
            try:
                return await self._post(url, headers, message.body)
            except Exception as error:
                # What failed is kept no longer: this ends with a new connection at the latest.
                if not errand.met_a_closed_door(error):
                    raise _mapped(error, destination) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _post(self, url: URL, headers: Mapping[str, str], body: bytes) -> Receipt:
        session = self._session or self._open()
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            answer = await _beginning_of(response)
            return retry.judge(response.status, answer, response.headers.get("Retry-After"))

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
    if isinstance(error, (Unavailable, Refused)):
        return error
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)):
        return Unavailable(_text(error), slowly=True)  # heals when the certificate is renewed
    if isinstance(error, aiohttp.InvalidURL):
        return Refused(_text(error))
    if isinstance(error, (aiohttp.ClientError, TimeoutError, OSError)):
        # ClientResponseError with status 400 is made up by aiohttp for garbage: no status is read here.
        return Unavailable(_text(error))
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
    text = " ".join(_URL.sub("<url>", text).split())
    return f"{type(error).__name__}: {text[:200]}".removesuffix(": ")
