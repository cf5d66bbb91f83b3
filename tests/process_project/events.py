"""What the service does when it is told: it tells the peer."""

from __future__ import annotations

import os
from typing import Any

from aevents import aemit, emit, subscribe_to


@subscribe_to("asked")
def tell(payload: dict[str, Any]) -> None:
    emit("told-back-sync", {**payload, "pid": os.getpid()})


@subscribe_to("asked")
async def atell(payload: dict[str, Any]) -> None:
    await aemit("told-back-async", {**payload, "pid": os.getpid()})
