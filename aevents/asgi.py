"""The ASGI lifespan, which Django lacks: what was handed over leaves before the server's process ends.

    application = lifespan(get_asgi_application())  # in asgi.py

Uvicorn ends its processes by the signal that it got, and no `atexit` callback runs then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aevents.courier import courier

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def lifespan(application: Application) -> Application:
    """Return `application`, which drains the courier when the server says that it shuts down."""

    async def with_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await application(scope, receive, send)
            return
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        # In a thread: this service's own events need the loop for their handlers.
        await asyncio.to_thread(courier.end)
        await send({"type": "lifespan.shutdown.complete"})

    return with_lifespan
