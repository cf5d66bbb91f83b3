"""What the outbox and relay benchmarks stand on: a database, a receiver, a broker, sides in processes.

Sides are timed in turn within one run, as in `duel.py`; between two of them all comes to rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests import databases

T = TypeVar("T")
ROUNDS = 9
_HERE = Path(__file__).parent.parent
_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # the one in PATH may change the user


class Side:
    """A process of `side.py`, or of a module like it; its functions are called by name."""

    def __init__(self, variables: Mapping[str, str], *module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *(module or ("benchmarks.side",))],
            cwd=_HERE,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "", **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the function there; return what it returns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the side ended in {name}; its stderr says why")
        return json.loads(line)[0]

    def end(self) -> None:
        """End the process."""
        with contextlib.suppress(Exception):
            self.call("end")
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.communicate()

    def wait_for(self, port: int) -> None:
        """Wait until it listens there."""
        wait_for(port, self._process)


@contextlib.contextmanager
def rigged(folder: Path, blocker: Any) -> Iterator[Rig]:
    """A database of PostgreSQL's, made for one test, which is skipped where there is no PostgreSQL."""
    with blocker.unblock(), contextlib.ExitStack() as stack:
        try:
            databases.get("postgresql", folder)
        except databases.Unavailable as error:
            pytest.skip(str(error))
        stack.callback(databases.drop_all)
        yield Rig(stack, folder)


class Rig:
    """A PostgreSQL and a receiver, and the sides of one test that use them."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        #: Where a process finds the database.
        self.variables = databases.environment("postgresql")
        self._variables = {**self.variables, "BENCH_RECEIVER": self.enter(uvicorn())}
        self._ways = frozenset(self.side("nothing").call("migrate"))

    def enter(self, context: contextlib.AbstractContextManager[T]) -> T:
        """Enter it until the end of the test."""
        return self._stack.enter_context(context)

    def need(self, way: str) -> None:
        """Skip the test where this way is not installed."""
        if way not in self._ways:
            pytest.skip(f"{way} is not installed")

    def side(self, way: str, *, stomp_port: int = 0) -> Side:
        """Return a process for this way, which ends with the test."""
        side = Side({**self._variables, "BENCH_STOMP_PORT": str(stomp_port)})
        self._stack.callback(side.end)
        return side

    def stomp_port(self, way: str) -> int:
        """Return where RabbitMQ listens, if this way needs one; skip the test where there is none."""
        if way != "outbox-pattern":
            return 0
        try:
            return self._stack.enter_context(rabbitmq(self._folder))
        except OSError as error:
            pytest.skip(f"no RabbitMQ: {error}")


def contest(
    benchmark: Any,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    *,
    what: str,
    goal: str,
    between: Callable[[], None] = lambda: None,
    rounds: int = ROUNDS,
    is_rate: bool = False,
) -> float:
    """Let both say in turn how long they took; return the median of ours : theirs, as `duel` does."""
    our_times: list[float] = []
    their_times: list[float] = []

    def before_each_round() -> None:
        between()
        their_times.append(theirs())
        between()

    def round_of_ours() -> None:
        our_times.append(ours())

    for way in (theirs, ours):
        between()
        way()  # warm: connections, imports, caches
    benchmark.pedantic(round_of_ours, setup=before_each_round, rounds=rounds, iterations=1)
    ratios = [
        other / own if is_rate else own / other for own, other in zip(our_times, their_times, strict=True)
    ]
    ratio = statistics.median(ratios)
    benchmark.extra_info.update(
        what=what,
        goal=goal,
        ratio=round(ratio, 3),
        spread=[round(min(ratios), 3), round(max(ratios), 3)],
        ours_ms=round(statistics.median(our_times) * 1e3, 3),
        theirs_ms=round(statistics.median(their_times) * 1e3, 3),
    )
    return ratio


@contextlib.contextmanager
def uvicorn() -> Iterator[str]:
    """`receiver.py` under uvicorn, in a process of its own: its URL."""
    of_django = ("uvicorn", "benchmarks.receiver:application", "--lifespan", "off")
    with serving(*of_django, "--log-level", "warning", "--port", "{port}") as url:
        yield url


@contextlib.contextmanager
def fast_uvicorn(name: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """What `receiver.py` calls `name`, under uvicorn at its quickest, in a process of its own: its URL."""
    quick = (
        "--loop",
        "uvloop",
        "--http",
        "httptools",
        "--lifespan",
        "off",
        "--no-access-log",
        "--timeout-keep-alive",
        "60",
    )
    app = ("uvicorn", f"benchmarks.receiver:{name}", "--log-level", "warning", "--port", "{port}")
    with serving(*app, *quick, env=env) as url:
        yield url


@contextlib.contextmanager
def serving(*command: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """A module of Python's as a server, in a process of its own: its URL. `{port}` stands for the port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", *[part.format(port=port) for part in command]],
        cwd=_HERE,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "", **(env or {})},
    )
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def rabbitmq(folder: Path) -> Iterator[int]:
    """A RabbitMQ of our own, on loopback: the port of its STOMP."""
    program = _RABBITMQ if _RABBITMQ.exists() else shutil.which("rabbitmq-server")
    if program is None:
        raise FileNotFoundError("rabbitmq-server")
    amqp, stomp, own = free_port(), free_port(), free_port()
    (folder / "plugins").write_text("[rabbitmq_stomp].\n")
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.local = 127.0.0.1:{amqp}\nstomp.listeners.tcp.local = 127.0.0.1:{stomp}\n"
    )
    process = subprocess.Popen(
        [program],
        cwd=folder,
        env={
            **os.environ,
            "HOME": str(folder),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": str(folder / "no-such-file"),
            "RABBITMQ_NODENAME": f"benchmarks-{os.getpid()}@localhost",
            "RABBITMQ_DIST_PORT": str(own),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(stomp, process, timeout_s=60.0)
        yield stomp
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[Any], timeout_s: float = 30.0) -> None:
    """Wait until something listens there; raises where the process ends before."""
    ends = time.monotonic() + timeout_s
    while True:
        try:
            with closing(socket.create_connection(("127.0.0.1", port), timeout=5)):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > ends:
                raise
            time.sleep(0.05)
