"""The other side of each duel: the same bytes, sent by hand."""

from __future__ import annotations

import asyncio
import base64
import hmac
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import aiohttp
import orjson

from aevents import aemit, wire
from aevents.event import Event, new_id
from aevents.wire import stamp

SECRET = "whsec_" + base64.b64encode(b"benchmarks sign with these bytes").decode()
KEY = base64.b64decode(SECRET.removeprefix("whsec_"))
PAYLOAD = {"user_id": 7, "name": "Ada", "note": "x" * 140}  # 200 bytes in all


def message(keys: Sequence[bytes] = (KEY,)) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body that aevents would send, signed with these keys."""
    made = wire.encode(Event(new_id(), "user-created", orjson.dumps(PAYLOAD), "me", datetime.now(UTC)))
    return stamp(made, keys), made.body


def messages(count: int, keys: Sequence[bytes] = (KEY,)) -> Iterator[tuple[dict[str, str], bytes]]:
    """Return so many of them, each with an id of its own: made beforehand, so that only sending is timed."""
    return iter([message(keys) for _ in range(count)])


def by_hand() -> tuple[dict[str, str], bytes]:
    """Make the same message as a team would by hand: nothing of aevents but the ids."""
    id, seconds = new_id(), str(int(time.time()))
    body = orjson.dumps({"event_type": "user-created", "payload": PAYLOAD})
    signed = hmac.digest(KEY, f"{id}.{seconds}.".encode() + body, "sha256")
    headers = {
        "content-type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": seconds,
        "webhook-signature": "v1," + base64.b64encode(signed).decode(),
        "ce-specversion": "1.0",
        "ce-id": id,
        "ce-source": "/me",
        "ce-type": "user-created",
        "ce-time": datetime.now(UTC).isoformat(),
    }
    return headers, body


def session() -> aiohttp.ClientSession:
    """Return a session with the settings of aevents' own. Call it in a running loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=1.5),
        timeout=aiohttp.ClientTimeout(total=10, sock_connect=2),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "aevents", "Accept": "application/json", "Accept-Encoding": "identity"},
        auto_decompress=False,
        trust_env=False,
    )


async def opened() -> aiohttp.ClientSession:
    """Return a session from outside of its loop: `loop.run_until_complete(opened())`."""
    return session()


async def post(http: aiohttp.ClientSession, url: str, headers: dict[str, str], body: bytes) -> None:
    """POST once and read the answer, which must be a 2xx."""
    async with http.post(url, data=body, headers=headers, allow_redirects=False) as response:
        await response.read()
        assert response.status < 300


async def emit() -> None:
    """Emit one event, which must be delivered when the call returns."""
    assert (await aemit("user-created", PAYLOAD)).delivered


async def at_a_time(width: int, count: int, once: Callable[[], Awaitable[Any]]) -> None:
    """Call `once` `count` times, `width` of them at a time."""

    async def worker() -> None:
        for _ in range(count // width):
            await once()

    await asyncio.gather(*(worker() for _ in range(width)))


def runner(
    loop: asyncio.AbstractEventLoop, make: Callable[[], Coroutine[Any, Any, Any]]
) -> Callable[[], Any]:
    """Return a function that runs `make()` on `loop`."""
    return lambda: loop.run_until_complete(make())
