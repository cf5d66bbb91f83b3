"""Services under real servers: emitting and receiving, stopped, reloaded and recycled under load.

The far end is a peer of this process, so that it is known what has arrived, and how often.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.peers import Peer, answers, answers_after, answers_when_released, eventually
from tests.process_project.running import ROOT, Service, serving, unwanted_in

SLOWLY_S = 60.0  # workers begin anew all the time, on a machine that may have other work
SERVERS = [
    "uvicorn",
    "uvicorn with the short way",
    "uvicorn with 2 workers",
    "granian ASGI",
    "granian WSGI",
    "gunicorn gthread",
    "gunicorn with uvicorn workers",
    pytest.param("gunicorn sync", marks=pytest.mark.soak),
    pytest.param(
        "uWSGI",
        marks=pytest.mark.skipif(find_spec("pyuwsgi") is None, reason="there is no wheel of pyuwsgi here"),
    ),
]


def ids_of(peer: Peer, event_type: str = "") -> list[str]:
    return [r.id for r in peer.requests if event_type in r.event_type]


@contextlib.contextmanager
def asking(service: Service, path: str) -> Iterator[Any]:
    """Ask from another thread; gives the future of status and content."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(service.get, path)


@pytest.mark.parametrize("server", SERVERS)
def test_a_service_emits_and_receives_and_a_stop_leaves_nothing_undone(server: str) -> None:
    with Peer() as peer, serving(server, peer, IN_FLIGHT=2, EXIT_S=20) as service:
        # When it emits in views, and in handlers of what it receives
        for view in ("emit", "aemit"):
            status, content = service.get(f"{view}/1")
            assert (status, content["outcome"], content["error"]) == (200, "delivered", None)
        assert service.get("hand-over/2")[1]["outcome"] == "queued"
        status, content = service.tell("asked", n=3)
        assert (status, content["status"]) == (200, "handled")

        # Then all of it arrives, once
        told = ["after-commit", "async", "back-async", "back-sync", "sync"]
        eventually(lambda: sorted(r.event_type for r in peer.requests) == [f"told-{kind}" for kind in told])

        # Given a request that has handed over more than may be in flight, and waits for the peer
        peer.behave(answers_when_released())
        with asking(service, "both/3") as asked:
            peer.wait_for(7)
            # When the server is told to stop, and the peer answers after that
            releasing = threading.Timer(0.3, peer.release)
            releasing.start()
            printed = service.stop()
            releasing.join()
            # Then the request goes on, emits more, and is answered
            status, content = asked.result()
            assert (status, content["outcome"]) == (200, "delivered")
        # And everything has arrived, once, and the process ended without a complaint
        assert len(ids_of(peer, "told-after-commit")) == 5
        assert len(ids_of(peer, "told-last")) == 1
        assert len(set(ids_of(peer))) == len(ids_of(peer)) == 11
        assert unwanted_in(printed) == []
        assert "Lost" not in printed


@pytest.mark.parametrize("server", SERVERS)
def test_what_is_owed_when_a_server_is_told_to_stop_still_arrives(server: str) -> None:
    # Given a peer that wants the event in a second: it is owed, and nobody waits for it
    with Peer(answers(503, retry_after="1"), answers()) as peer, serving(server, peer, EXIT_S=20) as service:
        assert service.get("hand-over/1")[1]["outcome"] == "queued"
        peer.wait_for(1)

        printed = service.stop()

        # Then it has arrived before the process has ended
        assert len(ids_of(peer)) == 2
        assert len(set(ids_of(peer))) == 1
        assert "Lost" not in printed
        assert unwanted_in(printed) == []


@pytest.mark.parametrize("server", SERVERS)
def test_a_stop_with_a_service_that_hangs_is_bounded_and_says_what_is_lost(server: str) -> None:
    with Peer(answers_when_released()) as peer, serving(server, peer, EXIT_S=0.3) as service:
        ids = [service.get(f"hand-over/{n}")[1]["id"] for n in range(3)]
        peer.wait_for(3)

        printed = service.stop()

        given_up = re.findall(r"The process ended with (\d) deliveries undone", printed)
        assert sum(map(int, given_up)) == 3  # each worker tells of its own
        assert [id_ for id_ in ids if f"Lost told-after-commit {id_}" not in printed] == []
        assert unwanted_in(printed) == []


def test_uvicorn_without_the_lifespan_ends_by_the_signal_when_the_requests_are_answered() -> None:
    # What was waited for has arrived by then; what was handed over has as long as the requests take
    with Peer() as peer, serving("uvicorn without the lifespan", peer) as service:
        peer.behave(answers_after(0.5))
        with asking(service, "aemit/1") as asked:
            peer.wait_for(1)
            service.stop()
            assert asked.result()[1]["outcome"] == "delivered"
        assert service.process.returncode == -signal.SIGTERM


def test_a_uvicorn_worker_that_is_recycled_drains_without_the_lifespan_too() -> None:
    # Given a worker that ends after one request, and a peer that wants the event later than that
    server = "gunicorn with uvicorn workers, without the lifespan"
    with Peer(answers(503, retry_after="1"), answers()) as peer:
        with serving(server, peer, "--max-requests=1", EXIT_S=20) as service:
            eventually(lambda: hands_over(service))
            # Then it has it all the same
            first, second = peer.wait_for(2)
            printed = service.stop()
        assert first.id == second.id
        assert unwanted_in(printed) == []


def hands_over(service: Service) -> bool:
    """Ask for it; tell whether an answer came: a worker that just ends may have taken the request."""
    try:
        return service.get("hand-over/1")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_what_the_master_has_under_way_when_it_forks_is_sent_by_nobody_else() -> None:
    # Given a master whose courier runs before it forks: the application emits when it is imported
    with Peer(answers_when_released()) as peer:
        with serving("gunicorn with preload", peer, CALL_S=0.3, EXIT_S=20) as service:
            # When both workers have answered, and emit themselves
            pids: set[int | None] = set()
            eventually(lambda: pids.add(service.pid()) or len(pids - {None}) == 2)
            peer.release()
            with ThreadPoolExecutor(8) as threads:
                answered = list(threads.map(lambda n: service.get(f"emit/{n}"), range(40)))
            printed = service.stop()

        # Then everything was sent by the process that emitted it, once
        assert [(s, c["outcome"]) for s, c in answered if (s, c["outcome"]) != (200, "delivered")] == []
        assert len(ids_of(peer, "told-at-import")) == 1
        assert sorted(ids_of(peer, "told-sync")) == sorted(c["id"] for _, c in answered)
        assert len({r.payload["pid"] for r in peer.requests}) == 3
        assert unwanted_in(printed) == []


# Under load


class Load:
    """Clients that ask one view after the other until they are stopped."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stopped = threading.Event()
        self.answered: list[dict[str, Any]] = []

    @property
    def pids(self) -> set[int]:
        """The processes that have answered."""
        return {content["pid"] for content in list(self.answered)}

    @contextlib.contextmanager
    def running(self, clients: int) -> Iterator[Load]:
        with ThreadPoolExecutor(clients) as threads:
            runs = [threads.submit(self._run) for _ in range(clients)]
            try:
                yield self
            finally:
                self._stopped.set()
        for run in runs:
            run.result()

    def _run(self) -> None:
        for n, view in enumerate(itertools.cycle(["emit", "aemit", "hand-over"])):
            if self._stopped.is_set():
                return
            try:
                status, content = self._service.get(f"{view}/{n}")
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)  # what a server drops while it reloads is its own affair
            else:
                assert status == 200
                self.answered.append(content)


_RECYCLING = ["--workers=2", "--max-requests=20", "--max-requests-jitter=5"]
_RESPAWNING = ["--workers=2", "--respawn-interval=1"]  # it recycles by time, after a minute at the least
RELOADED = {
    "gunicorn gthread": _RECYCLING,
    "gunicorn with uvicorn workers": _RECYCLING,
    "gunicorn with preload": _RECYCLING,
    "uvicorn with 2 workers": ["--limit-max-requests=40"],
    "granian ASGI": _RESPAWNING,
    "granian WSGI": _RESPAWNING,
}


@pytest.mark.parametrize("server", RELOADED)
def test_workers_recycled_and_reloaded_under_load_lose_nothing_and_send_nothing_twice(server: str) -> None:
    check_load(server, clients=4, reloads=1)


@pytest.mark.soak
@pytest.mark.parametrize("server", RELOADED)
def test_workers_reloaded_again_and_again_under_load_lose_nothing_and_send_nothing_twice(server: str) -> None:
    check_load(server, clients=8, reloads=10)


def check_load(server: str, *, clients: int, reloads: int) -> None:
    # Given a peer that takes its time, so that there is always something under way
    with Peer(answers_after(0.02)) as peer:
        with serving(server, peer, *RELOADED[server], EXIT_S=20) as service:
            # When workers end and begin while requests come in
            with Load(service).running(clients) as load:
                for _ in range(reloads):
                    before = len(load.answered)
                    eventually(lambda: len(load.answered) >= before + 30, within_s=SLOWLY_S)  # noqa: B023
                    pids = load.pids
                    service.process.send_signal(signal.SIGHUP)
                    eventually(lambda: len(load.pids - pids) >= 2, within_s=SLOWLY_S)  # noqa: B023
            printed = service.stop()

        # Then what was answered is what arrived, and each of it once
        assert {content["outcome"] for content in load.answered} == {"delivered", "queued"}
        arrived = Counter(ids_of(peer))
        assert [content for content in load.answered if content["id"] not in arrived] == []
        assert {id_: times for id_, times in arrived.items() if times > 1} == {}
        assert "Lost" not in printed
        assert unwanted_in(printed) == []


# Bodies without end


@pytest.mark.parametrize("server", ["uvicorn with the short way", "granian ASGI with the short way"])
def test_a_body_without_end_is_refused_while_it_comes_and_takes_no_room(server: str) -> None:
    with Peer() as peer, serving(server, peer) as service:
        assert service.tell("asked", n=1)[0] == 200
        before = _most_memory(service)

        # When eight at a time send 16 MiB each, whose length they do not tell
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: _send_chunks(service.port, 64 * 1024, 256), range(16)))

        # Then each is told why, or cut off, and of no body more was kept than allowed
        assert {answer for answer in answers if answer is not None} == {413}
        assert service.tell("asked", n=2)[0] == 200
        assert _most_memory(service) - before < 8 * 4 * 1024 * 1024
        service.stop()


def _send_chunks(port: int, size: int, count: int) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SLOWLY_S)
    headers = {"content-type": "application/json", "transfer-encoding": "chunked"}
    try:
        with contextlib.suppress(ConnectionError):
            body = itertools.repeat(b" " * size, count)
            connection.request("POST", "/events/", body, headers, encode_chunked=True)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _most_memory(service: Service) -> int:
    """Return how many bytes the process that answers has had at its most."""
    status = Path(f"/proc/{service.pid()}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


# Django's own server, and one that is not supported


CHANGING_SETTINGS = """
from tests.process_project.settings import *

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"django.utils.autoreload": {"level": "DEBUG", "handlers": ["console"]}},
}
"""


def test_runserver_emits_receives_reloads_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    # Given settings in a file that may change, and a reloader that tells when it has first seen it
    changing = tmp_path / "changing_settings.py"
    changing.write_text(CHANGING_SETTINGS)
    env = {
        "DJANGO_SETTINGS_MODULE": "changing_settings",
        "PYTHONUNBUFFERED": "1",  # what it prints is waited for
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
    }
    with Peer() as peer, serving("runserver", peer, env=env, EXIT_S=20) as service:
        assert service.get("aemit/1")[1]["outcome"] == "delivered"
        assert service.tell("asked", n=2)[1]["status"] == "handled"
        eventually(lambda: len(peer.requests) == 3)
        first = service.pid()
        # A change before that is none to it: on a fast machine all of the above takes less time.
        eventually(lambda: f"File {changing} first seen" in service.printed(), within_s=SLOWLY_S)

        # When it changes, with an event under way
        peer.behave(answers_after(1.5))
        service.get("hand-over/3")
        os.utime(changing)
        # Then another process serves, and the event has arrived. The old one is not asked while it ends:
        # it would accept, and on Python 3.12.1 it can start no thread for the request any more.
        eventually(lambda: service.printed().count("Quit the server") == 2, within_s=SLOWLY_S)
        eventually(lambda: service.pid() not in (first, None))
        assert len(ids_of(peer, "told-after-commit")) == 1

        # When Ctrl-C is pressed, with an event under way
        peer.behave(answers_after(0.5))
        service.get("hand-over/4")
        os.killpg(service.process.pid, signal.SIGINT)
        assert service.process.wait(20) == 0
        # Then it has arrived
        assert len(ids_of(peer, "told-after-commit")) == 2
        assert unwanted_in(service.printed()) == []


@pytest.mark.soak
def test_under_gevent_an_emit_fails_by_name_and_the_server_ends() -> None:
    with Peer() as peer, serving("gunicorn gevent", peer) as service:
        why = "the courier does not run: gevent has patched the threads of this process"
        for view in ("emit", "aemit"):
            status, content = service.get(f"{view}/1")
            assert (status, content["outcome"], content["error"]) == (200, "failed", why)
        assert service.tell("asked", n=2)[0] == 503

        assert why in service.stop()
        assert peer.requests == []


def test_under_uwsgi_without_threads_an_emit_fails_by_name_and_the_server_ends() -> None:
    pytest.importorskip("pyuwsgi", reason="there is no wheel of pyuwsgi here")
    why = "the courier does not run: uWSGI runs without threads: set enable-threads = true"
    with Peer() as peer, serving("uWSGI without threads", peer) as service:
        for view in ("emit", "aemit"):
            status, content = service.get(f"{view}/1")
            assert (status, content["outcome"], content["error"]) == (200, "failed", why)
        assert service.tell("asked", n=2)[0] == 503

        assert why in service.stop()
        assert peer.requests == []
