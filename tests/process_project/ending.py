"""Scripts that emit as they end: `python -m tests.process_project.ending <scene>`."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django

SCENES: dict[str, Callable[[], None]] = {}


def scene(function: Callable[[], None]) -> Callable[[], None]:
    """Make it a scene, which begins when Django is set up."""

    def begin() -> None:
        django.setup()
        function()

    SCENES[function.__name__] = begin
    return function


def scene_from_before_the_setup(function: Callable[[], None]) -> Callable[[], None]:
    """Make it a scene that sets Django up, and so imports aevents, by itself."""
    SCENES[function.__name__] = function
    return function


def tell(kind: str) -> None:
    """Emit and print how it fared."""
    from aevents import emit

    print(kind, emit(f"told-{kind}", {}).results[0].outcome)


def hand_over(*kinds: str) -> None:
    """Emit at a commit, which waits for nobody."""
    from django.db import connection, transaction

    from aevents import emit

    with transaction.atomic():
        for kind in kinds:
            emit(kind, {})
    connection.close()


@scene
def many() -> None:
    hand_over(*["told-many"] * 40)


@scene_from_before_the_setup
def before_the_courier() -> None:
    """These callbacks are called after the one that drains the courier."""
    atexit.register(hand_over, "told-handed-over-at-exit")
    atexit.register(tell, "at-exit")
    django.setup()
    tell("first")


@scene
def before_the_first_emit() -> None:
    atexit.register(hand_over, "told-handed-over-at-exit")
    atexit.register(tell, "at-exit")
    tell("first")


@scene
def after_the_first_emit() -> None:
    tell("first")
    atexit.register(hand_over, "told-handed-over-at-exit")
    atexit.register(tell, "at-exit")


@scene
def nowhere_else() -> None:
    atexit.register(hand_over, "told-handed-over-at-exit")
    atexit.register(tell, "at-exit")


@scene
def in_a_thread() -> None:
    """The main thread ends before it."""

    def work() -> None:
        threading.main_thread().join()
        tell("by-a-thread")
        hand_over("told-handed-over-by-a-thread")

    tell("first")
    threading.Thread(target=work).start()


@scene
def in_a_daemon_thread() -> None:
    """It emits for as long as it lives, which is a little longer than the courier does."""
    from aevents import aemit

    async def emit_for_ever() -> None:
        for n in range(1_000_000):
            await aemit("told-by-a-daemon", {"n": n})
            has_begun.set()

    has_begun = threading.Event()
    threading.Thread(target=lambda: asyncio.run(emit_for_ever()), daemon=True).start()
    has_begun.wait()


@scene
def after_asyncio_run() -> None:
    from aevents import aemit, emit

    async def main() -> None:
        await aemit("told-awaited", {})
        emit("told-handed-over", {})

    asyncio.run(main())


@scene
def sys_exit() -> None:
    hand_over("told-last")
    sys.exit(3)


@scene
def by_a_signal() -> None:
    """A signal without a handler ends Python at once."""
    hand_over("told-last")
    os.kill(os.getpid(), signal.SIGTERM)


@scene
def by_a_signal_that_is_handled() -> None:
    """As docs/processes.md has it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    by_a_signal()


@scene_from_before_the_setup
def and_look_what_is_left() -> None:
    """The last look is taken after the courier has ended."""

    def look() -> None:
        files = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
        print(
            [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()],
            any(file.startswith(("socket:", "anon_inode:")) for file in files),
        )

    atexit.register(look)
    django.setup()
    tell("first")
    look()


def subscribe(on_event: Callable[[str], None], aon_event: Callable[[str], Any]) -> None:
    from aevents import subscribe_to

    @subscribe_to("own-sync", name="sync")
    def handle(payload: dict[str, Any]) -> None:
        on_event("sync")

    @subscribe_to("own-async", name="async")
    async def ahandle(payload: dict[str, Any]) -> None:
        await aon_event("async")


@scene
def own_events() -> None:
    """The handlers print, write a row and tell the peer, each in its own way."""
    from django.db import connection

    from aevents import aemit, emit

    def handle(kind: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO handled VALUES (%s)", [kind])
        emit(f"told-by-the-{kind}-handler", {})

    async def ahandle(kind: str) -> None:
        from asgiref.sync import sync_to_async

        await asyncio.sleep(0.05)
        await sync_to_async(handle)(kind)
        await aemit(f"told-awaited-by-the-{kind}-handler", {})

    subscribe(handle, ahandle)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE handled (kind text)")
    connection.close()
    hand_over("own-sync", "own-async")


@scene
def own_events_at_exit() -> None:
    atexit.register(own_events)


@scene
def own_handlers_that_hang() -> None:
    have_begun = threading.Barrier(3)

    def hang(kind: str) -> None:
        have_begun.wait()
        threading.Event().wait()

    async def ahang(kind: str) -> None:
        await asyncio.to_thread(have_begun.wait)
        await asyncio.Event().wait()

    subscribe(hang, ahang)
    hand_over("own-sync", "own-async")
    have_begun.wait()


@scene
def a_name_that_is_looked_up_for_ever() -> None:
    import socket

    has_begun = threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> Any:
        has_begun.set()
        time.sleep(60)

    socket.getaddrinfo = getaddrinfo
    hand_over("told-last")
    has_begun.wait()


if __name__ == "__main__":
    SCENES[sys.argv[1]]()
