"""Runs this project: under a server, or as a script. Nothing is left of it afterwards.

with Peer() as peer, serving("gunicorn gthread", peer) as service:
    service.get("emit/1")
    printed = service.stop()

done = run("tests.process_project.ending", "last_lines", url=peer.url)
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers import Peer

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0  # generous: it ends a test that is broken, it times none that works
#: What no process of ours may say at its end.
UNWANTED = (
    "Traceback",
    "Event loop is closed",
    "Task was destroyed",
    "was never awaited",
    "was never retrieved",
    "Exception ignored",
    "Unclosed",
    "unclosed transport",
    "unclosed event loop",
    "unclosed database",
    "raddr=",  # of an unclosed socket that is connected: those that listen are the servers' own
)
#: Python's development mode, and a word on each thing that is left open. Errors these cannot be: servers
#: have warnings of their own.
_TALKATIVE = {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "always::ResourceWarning"}
_ASGI = "tests.process_project.asgi:application"
_SHORT_ASGI = "tests.process_project.asgi_with_receiver:application"
_BARE_ASGI = "tests.process_project.asgi_without_lifespan:application"
_WSGI = "tests.process_project.wsgi:application"
_WSGI_THAT_EMITS = "tests.process_project.wsgi_that_emits:application"
_UVICORN = ["uvicorn", "--host=127.0.0.1", "--port={port}", "--no-access-log"]
_GRANIAN = ["granian", "--host=127.0.0.1", "--port={port}"]
_GUNICORN = ["gunicorn", "--bind=127.0.0.1:{port}", "--no-control-socket"]
_GTHREAD = [*_GUNICORN, "--worker-class=gthread", "--threads=4"]
_UWSGI = [
    *("tests.process_project.uwsgi_server", "--http-socket=127.0.0.1:{port}", "--master", "--need-app"),
    "--hook-master-start=unix_signal:15 gracefully_kill_them_all",
]
_MANAGE = "tests.process_project.manage"
COMMANDS = {
    "uvicorn": [*_UVICORN, _ASGI],
    "uvicorn without the lifespan": [*_UVICORN, _BARE_ASGI],
    "uvicorn with the short way": [*_UVICORN, _SHORT_ASGI],
    "uvicorn with 2 workers": [*_UVICORN, "--workers=2", _ASGI],
    "granian ASGI": [*_GRANIAN, "--interface=asgi", _ASGI],
    "granian ASGI with the short way": [*_GRANIAN, "--interface=asgi", _SHORT_ASGI],
    "granian WSGI": [*_GRANIAN, "--interface=wsgi", "--blocking-threads=4", _WSGI],
    "gunicorn gthread": [*_GTHREAD, _WSGI],
    "gunicorn sync": [*_GUNICORN, "--worker-class=sync", _WSGI],
    "gunicorn with uvicorn workers": [*_GUNICORN, "--worker-class=uvicorn_worker.UvicornWorker", _ASGI],
    "gunicorn with uvicorn workers, without the lifespan": [
        *(*_GUNICORN, "--worker-class=uvicorn_worker.UvicornWorker", _BARE_ASGI),
    ],
    "gunicorn with preload": [*_GTHREAD, "--workers=2", "--preload", _WSGI_THAT_EMITS],
    "gunicorn gevent": [*_GUNICORN, "--worker-class=gevent", _WSGI],
    "uWSGI without threads": [*_UWSGI, f"--module={_WSGI}"],
    "uWSGI": [*_UWSGI, "--threads=4", f"--module={_WSGI}"],
    "runserver": [_MANAGE, "runserver", "--verbosity=0", "127.0.0.1:{port}"],
}


@dataclass
class Service:
    """A running server of the project."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> tuple[int, Any]:
        """Return status and content; a connection for each request."""
        return self._ask("GET", path)

    def tell(self, event_type: str, **payload: Any) -> tuple[int, Any]:
        """Post an event, as another service would."""
        body = json.dumps({"event_type": event_type, "payload": payload})
        return self._ask("POST", "events/", body, {"content-type": "application/json"})

    def pid(self) -> int | None:
        """Return which process answers, or None where nobody does."""
        try:
            content = self.get("")[1]
        except (OSError, http.client.HTTPException):
            return None
        return content["pid"] if content else None

    def stop(self) -> str:
        """Ask it to end by SIGTERM; return what it has printed when it has."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end:\n{self.printed()}") from None
        return self.printed()

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def _ask(self, method: str, path: str, *request: Any) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request(method, f"/{path}", *request)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()


@contextlib.contextmanager
def serving(
    server: str,
    peer: Peer,
    *options: str,
    env: Mapping[str, str] | None = None,
    **limits: float,
) -> Iterator[Service]:
    """Serve the project with one of `COMMANDS` and more `options`; it answers when the block begins."""
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(socket.socket())  # so that nobody else is given the port
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = folder / "server.log"
        *command, last = COMMANDS[server]
        process = subprocess.Popen(
            [sys.executable, "-m", *(part.format(port=port) for part in (*command, *options, last))],
            cwd=ROOT,
            env={**_environment(folder, peer.url, limits), **_TALKATIVE, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stack.enter_context(log.open("wb")),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        service = Service(port, process, log)
        try:
            _wait_until_it_answers(service)
            yield service
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass(frozen=True)
class Done:
    """A process that has ended: its lines, and those of its log or what else came by stderr."""

    returncode: int
    printed: list[str]
    errors: list[str]
    took_s: float


def run(module: str, *arguments: str, url: str, options: Sequence[str] = (), **limits: float) -> Done:
    """Run a module of the project with Python's development mode and warnings as errors."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", *options, "-m", module, *arguments],
            cwd=ROOT,
            env=_environment(Path(folder), url, limits),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        took_s = time.monotonic() - began
    # In development mode asyncio tells of each step that took long: the machine may be busy.
    errors = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    return Done(done.returncode, done.stdout.splitlines(), errors, took_s)


def unwanted_in(text: str) -> list[str]:
    """Return what a server printed that no process of ours may print."""
    return [line for line in text.splitlines() if any(words in line for words in UNWANTED)]


def _environment(folder: Path, url: str, limits: Mapping[str, float]) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "DJANGO_SETTINGS_MODULE": "tests.process_project.settings",
        "DATABASE": str(folder / "database.sqlite3"),
        # By name, which is the harder way: names are looked up in threads.
        "PEER_URL": url.replace("127.0.0.1", "localhost"),
        "LIMITS": json.dumps(limits),
    }


def _wait_until_it_answers(service: Service) -> None:
    ends = time.monotonic() + DEADLINE_S
    while service.process.poll() is None and time.monotonic() < ends:
        if service.pid() is not None:
            return
        time.sleep(0.02)
    raise AssertionError(f"it did not start:\n{service.printed()}")
