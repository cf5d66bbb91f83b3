"""Plays the story, shows the summary, says whether all was as it must be; leaves nothing behind."""

from __future__ import annotations

import argparse
import queue
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import django
import uvicorn

import aevents
from aevents.demo.client import Request, send
from aevents.demo.crash.play import Crash
from aevents.demo.facts import Fact
from aevents.demo.fleet import Fleet
from aevents.demo.screen import Screen
from aevents.demo.story import SCENES, Scene
from aevents.demo.watch import Interrupted, Watch, WentWrong

_READ_S = 0.5  # for reading a scene's title, on a terminal
_VERSIONS = f"aevents {aevents.__version__}, Django {django.__version__}, uvicorn {uvicorn.__version__}"
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code: 0, or 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser(
        prog="python -m aevents.demo", description="Three Django services that tell each other what happens."
    )
    parser.add_argument("--serve", action="store_true", help="keep the services running until Ctrl-C")
    parser.add_argument(
        "--crash", action="store_true", help="kill -9 each process of two services, and count what is lost"
    )
    options = parser.parse_args(arguments)
    facts: queue.SimpleQueue[Fact] = queue.SimpleQueue()
    for number in _SIGNALS:
        signal.signal(number, lambda number, frame: _interrupt(facts, number))
    try:
        with tempfile.TemporaryDirectory(prefix="aevents-demo-", ignore_cleanup_errors=True) as folder:
            return _Demo(Path(folder), facts).run(serve=options.serve, crash=options.crash)
    except Interrupted as interrupted:
        return 128 + interrupted.number


class _Demo:
    """One run, with everything it needs."""

    def __init__(self, folder: Path, facts: queue.SimpleQueue[Fact]) -> None:
        self._facts = facts
        self._screen = Screen()
        self._watch = Watch(self._facts, self._screen.fact)
        self._fleet = Fleet(folder, self._facts)

    def run(self, *, serve: bool = False, crash: bool = False) -> int:
        began = time.monotonic()
        try:
            with self._screen:
                return self._crash() if crash else self._run(serve, began)
        except WentWrong as error:
            self._explain(error)
            return 1
        except Interrupted:
            self._screen.say("\nInterrupted.")
            raise
        finally:
            self._fleet.stop()

    def _crash(self) -> int:
        self._screen.say(f"{_VERSIONS}: two services, each with a SQLite file of its own.")
        Crash(self._fleet, self._screen, self._facts).play()
        return 0

    def _run(self, serve: bool, began: float) -> int:
        self._screen.say(f"{_VERSIONS}: three services, each a process with a SQLite file of its own.")
        for scene in SCENES:
            self._play(scene)
        if not serve:
            self._stop()
        self._watch.finish()
        self._screen.summary(self._watch.facts)
        self._screen.say(
            f"   Everything happened as it must: {len(self._watch.facts)} facts,"
            f" {time.monotonic() - began:.1f} s.",
            "bold green",
        )
        return self._serve() if serve else 0

    def _play(self, scene: Scene) -> None:
        self._screen.title(scene.title)
        for name in scene.starts:
            self._fleet.start(name)
        if self._screen.is_live:
            time.sleep(_READ_S)
        if scene.request is not None:
            port = self._fleet.ports[scene.request.service]
            self._screen.command(scene.request.as_curl(port))
            send(scene.request, port, self._facts)
        self._watch.until_seen(scene.keys)

    def _stop(self) -> None:
        for name, code in self._fleet.stop().items():
            if code:
                raise WentWrong(f"{name} ended with exit code {code}.", name)

    def _serve(self) -> int:
        try:
            self._show_what_to_try()
            while True:
                self._watch.follow()
        except Interrupted:
            return 0

    def _show_what_to_try(self) -> None:
        self._screen.say("\nThe services keep running until Ctrl-C. Try:")
        for request in (
            Request("accounts", "/sign-up/", {"name": "Lin"}),
            Request("orders", "/orders/", {"user_id": "2", "item": "chair"}),
            Request("orders", "/orders/2/cancel/", {}),
        ):
            self._screen.command(request.as_curl(self._fleet.ports[request.service]))
        self._screen.say("Or be a service yourself:")
        event = """'{"event_type": "user-created", "payload": {"user_id": 9, "name": "Mo"}}'"""
        url = f"http://127.0.0.1:{self._fleet.ports['payments']}/events/"
        self._screen.command(f"curl -H 'Content-Type: application/json' -d {event} {url}")

    def _explain(self, error: WentWrong) -> None:
        self._screen.say(f"\nThe demo went wrong.\n{error}", "bold red")
        for name in self._fleet.names if error.service is None else (error.service,):
            tail = self._fleet.log_tail(name)
            if tail:
                self._screen.say(f"\nThe last lines of {name}:\n{tail}")


def _interrupt(facts: queue.SimpleQueue[Fact], number: int) -> None:
    # A fact like any other, not an exception: one could come between a process and the note of it.
    facts.put(Fact(time.time(), "you", "interrupted", who=str(number)))
