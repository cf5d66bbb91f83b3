from __future__ import annotations

import time
from typing import Any

from aevents import aemit, current_event, emit, subscribe_to


@subscribe_to("ping")
async def answer_with_pong(payload: dict[str, Any]) -> None:
    await aemit("pong", {"n": payload["n"] + 1})


@subscribe_to("pong")
def answer_with_ping(payload: dict[str, Any]) -> None:
    emit("ping", {"n": payload["n"] + 1})


@subscribe_to("asked")
def begin(payload: dict[str, Any]) -> None:
    """The first of three that a service goes through with itself."""
    emit("begun", payload)


@subscribe_to("begun")
async def go_on(payload: dict[str, Any]) -> None:
    await aemit("continued", payload)


@subscribe_to("continued")
def end(payload: dict[str, Any]) -> None:
    event = current_event()
    assert event is not None
    emit("ended", {**payload, "source": event.source, "hops": event.hops})


@subscribe_to("asked-slowly")
def take_long(payload: dict[str, Any]) -> None:
    time.sleep(payload["seconds"])
    emit("ended", payload)
