"""Handlers that write what they do, a line each, to the file DIARY."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from aevents import subscribe_to


def write(line: str) -> None:
    with Path(os.environ["DIARY"]).open("a") as diary:
        diary.write(line + "\n")


@subscribe_to("quick", name="quick")
def quick(payload: dict[str, Any]) -> None:
    write(f"quick {payload['n']}")


@subscribe_to("slow", name="slow", atomic=False)
def slow(payload: dict[str, Any]) -> None:
    write("slow begins")
    time.sleep(payload["s"])
    write("slow ends")


@subscribe_to("slow-async", name="slow-async")
async def slow_async(payload: dict[str, Any]) -> None:
    write("slow begins")
    await asyncio.sleep(payload["s"])
    write("slow ends")


@subscribe_to("bad", name="bad")
def bad(payload: dict[str, Any]) -> None:
    write("bad")
    raise ValueError("it is bad")


@subscribe_to("deadly", name="deadly", atomic=False)
def deadly(payload: dict[str, Any]) -> None:
    write("deadly")
    os.kill(os.getpid(), signal.SIGKILL)
