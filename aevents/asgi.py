"""The ASGI lifespan, which Django lacks: what is owed begins to leave when the server starts, and what was
handed over has left, or is stored, before its process ends.

    application = lifespan(get_asgi_application())  # in asgi.py

Uvicorn ends its processes by the signal that it got, and no `atexit` callback runs then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aevents import relay
from aevents.keeper import keeper
from aevents.settings import conf

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
            keeper.begin()
            await send({"type": "lifespan.startup.complete"})
        # In a thread: this service's own events need the loop for their handlers.
        await asyncio.to_thread(relay.end, conf().LIMITS.EXIT_S)
        await send({"type": "lifespan.shutdown.complete"})

    return with_lifespan
