"""Scripts that fork, or have others do it: `python -m tests.process_project.forking <scene>`."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import django


def tell(n: int) -> str:
    """Emit, and return how it fared."""
    from aevents import emit

    return emit("told-by-a-child", {"n": n, "pid": os.getpid()}).results[0].outcome


def hand_over(n: int) -> None:
    """Emit at a commit, which waits for nobody."""
    from django.db import connection, transaction

    with transaction.atomic():
        tell(n)
    connection.close()


def begin_a_child() -> None:
    django.setup()


def prefork() -> None:
    """A pool as Celery has it: workers that leave by `os._exit`, with a flush before."""
    from aevents import flush

    hand_over(0)  # the parent's courier runs, and has one under way
    children = []
    for worker in range(3):
        pid = os.fork()
        if pid == 0:
            outcomes = [tell(10 * worker + 1), tell(10 * worker + 2)]
            hand_over(10 * worker + 3)
            os._exit(0 if flush(20) and outcomes == ["delivered"] * 2 else 1)
        children.append(pid)
    print([os.waitpid(pid, 0)[1] for pid in children], tell(100))


def _children(method: str) -> None:
    context = multiprocessing.get_context(method)
    if method == "fork":
        hand_over(0)
    process = context.Process(target=_child)
    process.start()
    process.join()
    with ProcessPoolExecutor(2, context, initializer=begin_a_child) as pool:
        outcomes = list(pool.map(tell, range(10, 16)))
        list(pool.map(hand_over, range(20, 26)))
    print(process.exitcode, sorted(set(outcomes)))


def _child() -> None:
    begin_a_child()
    hand_over(1)


def fork() -> None:
    """`multiprocessing` by fork: with a courier in the parent, and no flush in the children."""
    _children("fork")


def spawn() -> None:
    _children("spawn")


def forkserver() -> None:
    _children("forkserver")


def while_a_name_is_looked_up() -> None:
    """The C library's locks are copied as they are: nobody may be inside when a process forks."""
    import socket

    look_up, has_begun, has_ended = socket.getaddrinfo, threading.Event(), threading.Event()

    def getaddrinfo(*arguments: Any, **options: Any) -> Any:
        has_begun.set()
        time.sleep(0.2)
        found = look_up(*arguments, **options)
        has_ended.set()
        return found

    socket.getaddrinfo = getaddrinfo
    hand_over(0)
    has_begun.wait()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if has_ended.is_set() else 1)
    print(os.waitpid(pid, 0)[1])


SCENES: dict[str, Callable[[], None]] = {
    scene.__name__: scene for scene in (prefork, fork, spawn, forkserver, while_a_name_is_looked_up)
}

if __name__ == "__main__":
    # Python 3.12 warns of each fork beside a thread; that is what is tried out here.
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)
    django.setup()
    SCENES[sys.argv[1]]()
