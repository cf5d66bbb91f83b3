"""Forks the processes of a test: orders in by stdin, a line of JSON each; what becomes of them out.

All is imported before the first fork, so that a process is there within milliseconds, and hundreds can
be killed in a minute. Nothing of aevents or Django has been used by then: no thread, no connection.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging.config
import os
import select
import signal
import sys
from typing import Any

import django

_PR_SET_PDEATHSIG = 1
#: What processes import when they first need it, which takes longer than they live.
_LATE = (
    "aevents.commands.worker",
    "aevents.management.commands.aevents",
    "aevents.transports.http",
    "django.core.management.commands.makemigrations",
    "django.core.management.commands.migrate",
    "django.db.migrations.executor",
    "django.views.csrf",
    "django.views.defaults",
    "uvicorn.lifespan.on",
    "uvicorn.loops.asyncio",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.http.h11_impl",
    "uvicorn.protocols.websockets.auto",
)


def main() -> int:
    """Fork on demand, until stdin ends; then all children are killed."""
    django.setup()
    from tests.crash_project import asgi, roles, urls  # noqa: F401 - before the forks

    for module in (*_LATE, *os.environ.get("LATE", "").split()):
        importlib.import_module(module)
    wakes, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    tell = roles.Teller(os.dup(1))
    children: set[int] = set()
    begun = b""
    tell(launcher=os.getpid())
    while True:
        readable = select.select([0, wakes], [], [])[0]
        if wakes in readable:
            os.read(wakes, 1000)
            _reap(children, tell)
        if 0 in readable:
            read = os.read(0, 65536)
            if not read:
                break
            *lines, begun = (begun + read).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    os.close(wakes)
                    os.close(wake)
                    return _become(order, roles, tell)
                children.add(pid)
                tell(name=order["name"], pid=pid)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    return 0


def _reap(children: set[int], tell: Any) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)
        tell(ended=pid, code=os.waitstatus_to_exitcode(status))


def _become(order: dict[str, Any], roles: Any, tell: Any) -> int:
    """Be the process that was ordered, in the child of a fork."""
    from django.conf import settings

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody is left when the launcher is gone
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for to, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, to)
    logging.config.dictConfig(settings.LOGGING)
    settings.AEVENTS = order["aevents"]
    tell.name = order["name"]
    if order["lease_s"] is not None:
        roles.hasten(order["lease_s"])
    code: int = roles.ROLES[order["role"]](tell, **order["arguments"])
    return code


if __name__ == "__main__":
    sys.exit(main())
