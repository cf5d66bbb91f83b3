"""You, with a form: a Request in, the service's answer out as a Fact like any other."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlencode

from aevents.demo.facts import Fact

_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request to one of the services; with a form it is a POST."""

    service: str
    path: str
    form: dict[str, str] | None = None

    def as_curl(self, port: int) -> str:
        """Return the command that does the same."""
        data = "" if self.form is None else f"-d '{urlencode(self.form)}' "
        return f"curl {data}http://127.0.0.1:{port}{self.path}"


def send(request: Request, port: int, facts: queue.SimpleQueue[Fact]) -> None:
    """Send the request without waiting for the answer, which goes into `facts`."""
    threading.Thread(target=_send, args=(request, port, facts), daemon=True).start()


def _send(request: Request, port: int, facts: queue.SimpleQueue[Fact]) -> None:
    began = time.monotonic()
    try:
        answer = _ask(request, port)
    except (OSError, http.client.HTTPException, ValueError) as error:
        answer = f"{type(error).__name__}: {error}"
    ms = (time.monotonic() - began) * 1000
    facts.put(Fact(time.time(), request.service, "answered", request.path, answer, ms))


def _ask(request: Request, port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        if request.form is None:
            connection.request("GET", request.path)
        else:
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", request.path, urlencode(request.form), kind)
        response = connection.getresponse()
        content = json.loads(response.read())
        return " ".join([str(response.status), *(f"{key}={content[key]}" for key in content)])
    finally:
        connection.close()
