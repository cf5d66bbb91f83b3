from __future__ import annotations

import asyncio
from typing import Any

from aevents import subscribe_to
from tests.project.models import Note


@subscribe_to("noted")
@subscribe_to("noted-sync")
def write_sync(payload: dict[str, Any]) -> None:
    Note.objects.create(text=f"sync {payload['n']}")


@subscribe_to("noted")
@subscribe_to("noted-async")
async def write_async(payload: dict[str, Any]) -> None:
    note = await Note.objects.acreate(text=f"async {payload['n']}")
    await Note.objects.aget(pk=note.pk)


@subscribe_to("noted-slowly")
async def write_slowly(payload: dict[str, Any]) -> None:
    await Note.objects.acreate(text="begun")
    while not await Note.objects.filter(text="go on").aexists():  # noqa: ASYNC110 - the test writes it
        await asyncio.sleep(0.01)
    await Note.objects.acreate(text="ended")


@subscribe_to("noted-badly")
def write_badly(payload: dict[str, Any]) -> None:
    Note.objects.create(text="rolled back")
    raise ValueError("this note is bad")
