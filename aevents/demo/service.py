"""One service as a process: `migrate`, then uvicorn, until stdin is closed.

The runner holds the other end of stdin: however it ends, its services end too.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

import django
import uvicorn
from django.conf import settings
from django.core.management import call_command

from aevents.demo import reporter


class Server(uvicorn.Server):
    """Reports when it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            reporter.report("started", detail=f"http://127.0.0.1:{self.config.port}")


def serve() -> None:
    """Serve the project of DJANGO_SETTINGS_MODULE on PORT."""
    django.setup()
    reporter.connect()
    # The apps have no migrations, as their tables live no longer than the demo.
    call_command("migrate", run_syncdb=True, verbosity=0)
    server = Server(
        uvicorn.Config(
            f"{settings.ROOT_URLCONF.rpartition('.')[0]}.asgi:application",
            port=int(os.environ["PORT"]),
            log_level="warning",
            timeout_graceful_shutdown=3,
        )
    )

    def stop() -> None:
        server.should_exit = True

    at_end_of_stdin(stop)
    server.run()


def at_end_of_stdin(call: Callable[[], None]) -> None:
    """Call it, in another thread, when the runner closes stdin or is no more."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        call()

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    serve()
