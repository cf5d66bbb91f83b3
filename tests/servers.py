"""Real servers for the tests: a Django project under uvicorn, granian or gunicorn, as a process.

with running("uvicorn", settings="tests.project.settings_notes", env={"NOTES_DB": path}) as url:
    post(url + "events/", ...)
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
_STARTS_WITHIN_S = 30.0
_STOPS_WITHIN_S = 15.0

ASGI = "tests.project.asgi:application"
SHORT_ASGI = "tests.project.asgi_short:application"
WSGI = "tests.project.wsgi:application"
COMMANDS: Mapping[str, list[str]] = {
    "uvicorn": ["uvicorn", ASGI, "--host=127.0.0.1", "--port={port}", "--no-access-log"],
    "uvicorn-short": ["uvicorn", SHORT_ASGI, "--host=127.0.0.1", "--port={port}", "--no-access-log"],
    "granian-asgi": ["granian", "--interface=asgi", "--host=127.0.0.1", "--port={port}", ASGI],
    "granian-wsgi": [
        *("granian", "--interface=wsgi", "--blocking-threads=4"),
        *("--host=127.0.0.1", "--port={port}", WSGI),
    ],
    "gunicorn": [
        *("gunicorn", "--worker-class=gthread", "--threads=4", "--workers=1"),
        *("--no-control-socket", "--bind=127.0.0.1:{port}", WSGI),
    ],
}


@contextlib.contextmanager
def running(
    server: str,
    *,
    settings: str,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    options: Sequence[str] = (),
    tls: ssl.SSLContext | None = None,
) -> Iterator[str]:
    """Serve the project of `settings` with one of `COMMANDS`; gives its URL, with a slash at the end.

    It answers when the block begins and is gone, with all its children, when the block ends. `log`
    gets what it prints; without, that is shown only where the server does not start or stop. Where its
    `options` make it speak TLS, `tls` is what it is asked with whether it answers.
    """
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(_reserved_port())
        output = log or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "server.log"
        process = subprocess.Popen(
            [sys.executable, "-m", *(part.format(port=port) for part in COMMANDS[server]), *options],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "DJANGO_SETTINGS_MODULE": settings,
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=stack.enter_context(output.open("wb")),
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that a worker that outlives its master can be found
        )
        try:
            _wait_until_it_answers(process, port, output, tls)
            yield f"http{'s' if tls else ''}://127.0.0.1:{port}/"
        finally:
            _stop(process, output)


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    """A free port that nobody else is given: bound here, never listened on, shared by SO_REUSEADDR."""
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        yield reservation.getsockname()[1]


def _wait_until_it_answers(
    process: subprocess.Popen[bytes], port: int, output: Path, tls: ssl.SSLContext | None
) -> None:
    ends = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < ends and process.poll() is None:
        connection = (
            http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=tls)
            if tls
            else http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        )
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
        else:
            return
        finally:
            connection.close()
    raise AssertionError(f"the server did not start:\n{output.read_text(errors='replace')}")


def _stop(process: subprocess.Popen[bytes], output: Path) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOPS_WITHIN_S)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the server did not stop:\n{output.read_text(errors='replace')}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
