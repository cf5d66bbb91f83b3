"""What the benchmarks share: receivers in processes of their own, and the table at the end."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from aevents.courier import courier
from aevents.loops import new_quickest_loop
from benchmarks import clients, report
from benchmarks.rig import Rig, fast_uvicorn, rigged


def pytest_addoption(parser: pytest.Parser) -> None:
    # Known only where this folder is named on the command line, as `tox -e bench` does.
    parser.addoption("--report", action="store_true", help="write benchmarks/report.md and report.svg")


@pytest.fixture(scope="session")
def sinks() -> Iterator[list[str]]:
    """101 URLs of one process that answers every POST with 204 at once; the last one after 2 s."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    ports = ours.recv()
    yield [f"http://127.0.0.1:{port}/events/" for port in ports]
    process.terminate()
    process.join()


@pytest.fixture(scope="session")
def receiver() -> Iterator[str]:
    """A Django project under uvicorn with two ways in (see `receiver.py`) and a plain async view."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "uvicorn", "benchmarks.receiver:short_way", "--port", str(port)),
            *("--log-level", "warning", "--lifespan", "off"),
        ],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "", "BENCH_SECRET": clients.SECRET},
    )
    url = f"http://127.0.0.1:{port}"
    ends = time.monotonic() + 30
    while True:
        try:
            with closing(socket.create_connection(("127.0.0.1", port), timeout=5)):
                break
        except OSError:
            if time.monotonic() > ends:
                process.kill()
                raise
            time.sleep(0.05)
    yield url
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def signed_receiver() -> Iterator[str]:
    """The short way in and the adrf view of one server at its quickest, which verify."""
    with fast_uvicorn("short_way", {"BENCH_SECRET": clients.SECRET}) as url:
        yield url


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop as the courier has it: uvloop's, where that is installed."""
    loop = new_quickest_loop()
    yield loop
    loop.close()


@pytest.fixture
def rig(tmp_path: Path, django_db_blocker: Any) -> Iterator[Rig]:
    """A database of PostgreSQL's and what the sides of one test stand on."""
    with rigged(tmp_path, django_db_blocker) as rig:
        yield rig


@pytest.fixture
def routed(settings: Any) -> Iterator[Any]:
    """Route an event type to these URLs."""

    def route(*urls: str, event_type: str = "user-created") -> None:
        services = {f"service-{n}": url for n, url in enumerate(urls)}
        settings.AEVENTS = {
            "SERVICE": "benchmarks",
            "ENABLED": True,
            "SECRETS": [clients.SECRET],
            "SERVICES": services,
            "SUBSCRIPTIONS": {event_type: list(services)},
        }

    yield route
    courier.close(5.0)


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    session = getattr(config, "_benchmarksession", None)
    infos = [bench.extra_info for bench in getattr(session, "benchmarks", [])]
    for title, lines in (("ratios", _ratios(infos)), ("figures", _figures(infos))):
        if lines:
            terminalreporter.section(f"{title} (median of the rounds, least and greatest)")
            for line in lines:
                terminalreporter.write_line(line)
    if any("what" in info for info in infos) and config.getoption("--report", default=False):
        for path in report.write(infos):
            terminalreporter.write_line(f"written: {path}")


def _ratios(infos: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{row.what:<78} {row.ratio:>6.2f}  ({row.least:.2f} to {row.greatest:.2f})  goal {row.goal}"
        for row in report.rows_of(infos)
    ]


def _figures(infos: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{row.what:<78} {row.figure:>10,.1f} {row.unit}  ({row.least:,.1f} to {row.greatest:,.1f})"
        f"  goal {row.aim}"
        for row in report.figures_of(infos)
    ]


def _serve(told: Connection) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(_Sink, "127.0.0.1", 0) for _ in range(100)]
        servers.append(await loop.create_server(lambda: _Sink(2.0), "127.0.0.1", 0))
        told.send([server.sockets[0].getsockname()[1] for server in servers])
        await asyncio.Event().wait()

    asyncio.run(main())


class _Sink(asyncio.Protocol):
    """As little of an HTTP server as a benchmark of its clients needs."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            if self.delay_s:
                asyncio.get_running_loop().call_later(self.delay_s, self._answer)
            else:
                self._answer()

    def _answer(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")
