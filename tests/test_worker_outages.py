"""A worker whose database server comes and goes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.db import connections

from tests import databases
from tests.peers import eventually
from tests.process_project.running import unwanted_in
from tests.workers import Worker, is_empty, owe

pytestmark = pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True)


@pytest.fixture
def worker(store: str, tmp_path: Path) -> Iterator[Worker]:
    found = Worker(store, tmp_path, PEER_URL="http://127.0.0.1:9/")  # nobody is told of anything
    yield found
    found.kill()
    connections[store].close()


class Proxy:
    """A way to a TCP server that can be cut and mended."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._sockets: list[socket.socket] = []
        # Bound all the time, so that nobody else gets the port: nor does a client that connects to it while
        # nobody listens, whose own end the kernel may put there, so that it talks to itself for ever.
        self._door = self._bound(0)
        self.port: int = self._door.getsockname()[1]

    @staticmethod
    def _bound(port: int) -> socket.socket:
        door = socket.socket()
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", port))
        return door

    def mend(self) -> None:
        self._door.listen()
        threading.Thread(target=self._accept, args=(self._door,), daemon=True).start()

    def cut(self) -> None:
        self.close()
        self._door = self._bound(self.port)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._sockets.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = listener.accept()[0]
                far = socket.create_connection(self._server)
                self._sockets += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    @staticmethod
    def _copy(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)


def test_it_outlives_a_database_that_is_down_at_its_start_and_later(store: str, worker: Worker) -> None:
    url = urlsplit(databases.environment(store)["STORE_URL"])
    proxy = Proxy(str(url.hostname), int(url.port or 0))
    user = f"{url.username}:{url.password}@" if url.password else f"{url.username}@"
    worker.env["STORE_URL"] = url._replace(netloc=f"{user}127.0.0.1:{proxy.port}").geturl()
    owe("quick", n=1)
    try:
        # Given
        worker.start()
        worker.said("The worker waits for its database")
        # When it is there
        proxy.mend()
        worker.wrote("quick 1")
        eventually(lambda: is_empty(store))
        # And when it is away for a while
        proxy.cut()
        owe("quick", n=2)
        time.sleep(2)
        proxy.mend()
        worker.wrote("quick 2")
        # Then it has gone on
        worker.send()
        assert worker.ends() == 0
        assert unwanted_in(worker.printed) == [], worker.printed
        # And where it is away for good, --once says so
        proxy.cut()
        assert worker.start("--once").ends() == 2
        assert "The store cannot be used: OperationalError" in worker.printed
        assert unwanted_in(worker.printed) == [], worker.printed
    finally:
        proxy.close()
