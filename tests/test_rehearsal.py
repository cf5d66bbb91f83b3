"""A fleet changes whom it believes: real services are stopped and started one after the other at each step.

The plans are those of test_rotation.py. Whoever is up goes on emitting meanwhile: nobody is refused at any
moment, and what was emitted for a service that was down is handled when it is there again.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aevents import signature, wire
from aevents.signature import new_secret
from tests.pages import Service, ask, free_ports, write
from tests.peers import eventually
from tests.test_rotation import MOVED, ROTATED, TURNED_ON, Step
from tests.test_wire import event

FILES = {
    "serve.py": """
import os
import sys

os.environ.update(NAME=sys.argv[1], DJANGO_SETTINGS_MODULE="rehearsed.settings")

import django
import uvicorn

django.setup()

from django.core.management import call_command

call_command("migrate", verbosity=0)
uvicorn.run("rehearsed.asgi:application", port=int(sys.argv[2]), log_level="warning")
""",
    "rehearsed/settings.py": """
import json
import os
from pathlib import Path

NAME = os.environ["NAME"]
SECRET_KEY = "rehearsed"
DEBUG = False
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "rehearsed.urls"
INSTALLED_APPS = ["aevents", "rehearsed"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": f"{NAME}.sqlite3",
        "OPTIONS": {"init_command": "PRAGMA journal_mode=WAL", "transaction_mode": "IMMEDIATE"},
    }
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"aevents": {"handlers": ["console"], "level": "INFO"}},
}
AEVENTS = json.loads(Path(f"{NAME}.json").read_text())
""",
    "rehearsed/__init__.py": "",
    "rehearsed/asgi.py": """
from django.core.asgi import get_asgi_application

from aevents.asgi import receiver

application = receiver(get_asgi_application())
""",
    "rehearsed/urls.py": """
from django.http import JsonResponse
from django.urls import include, path

from aevents import emit


def emits(request, n):
    results = emit("noted", {"n": n}).results
    return JsonResponse({each.service: [each.outcome, each.error] for each in results})


urlpatterns = [path("emit/<int:n>", emits), path("events/", include("aevents.urls"))]
""",
    "rehearsed/events.py": """
import os
from pathlib import Path

from aevents import current_event, subscribe_to


@subscribe_to("noted", atomic=False)
def note(payload):
    with Path(os.environ["NAME"] + ".diary").open("a") as diary:
        diary.write(f"{current_event().source} {payload['n']}\\n")
""",
}
PLANS: dict[str, tuple[list[Step], tuple[str, ...]]] = {
    "turned on": (TURNED_ON, ("accounts", "payments")),
    "rotated": (ROTATED, ("accounts", "payments")),
    "moved": (MOVED, ("accounts", "payments", "orders")),
}


class Rehearsal:
    """The services of a plan, each with its settings of the moment; `emitted`: (from, number, to)."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self._folder = folder
        self._ports = ports
        self._pairs: dict[str, dict[str, str]] = {name: {} for name in ports}
        for name in ports:
            for other in ports:
                if other != name:
                    self._pairs[name][other] = self._pairs[other].get(name) or new_secret()
        self._running: dict[str, Service] = {}
        self._number = 0
        self.emitted: set[tuple[str, int, str]] = set()
        write(folder, FILES)

    def start(self, name: str, step: Step) -> None:
        others = [other for other in self._ports if other != name]
        services = {}
        for other in others:
            secrets = [self._pairs[name][other], *step["between"][1:]] if "between" in step else []
            services[other] = {"URL": f"http://127.0.0.1:{self._ports[other]}/events/", "SECRETS": secrets}
        settings = {key: value for key, value in step.items() if key.isupper() and key != "SENDERS"}
        if "SENDERS" in step:
            settings["SENDERS"] = {"*": others}
        given = {"SERVICE": name, "SERVICES": services, "SUBSCRIPTIONS": {"*": others}, "INBOX": True}
        schedule = {"SCHEDULE": [0.5] * 100}
        write(self._folder, {f"{name}.json": json.dumps({**given, **schedule, **settings})})
        command = [sys.executable, "serve.py", name, str(self._ports[name])]
        log = self._folder / f"{name}.log"
        self._running[name] = Service(command, self._folder, self._ports[name], log)

    def stop(self, name: str) -> None:
        self._running.pop(name).stop()

    def emit_everywhere(self) -> None:
        """Let everybody who is up emit one event to all others."""
        for name in self._running:
            self._number += 1
            status, body = ask(f"http://127.0.0.1:{self._ports[name]}/emit/{self._number}")
            assert status == 200
            for other, (outcome, error) in json.loads(body).items():
                assert outcome in ("delivered", "parked"), (name, other, error)
                self.emitted.add((name, self._number, other))

    def wait_until_all_are_handled(self) -> None:
        expected = sorted(self.emitted)
        eventually(lambda: self._handled() == expected, within_s=60.0, what=self.printed())

    def _handled(self) -> list[tuple[str, int, str]]:
        lines = {name: self._folder / f"{name}.diary" for name in self._ports}
        return sorted(
            (line.split()[0], int(line.split()[1]), name)
            for name, diary in lines.items()
            if diary.exists()
            for line in diary.read_text().splitlines()
        )

    def printed(self) -> str:
        """Return what all have logged from the beginning."""
        return "\n".join((self._folder / f"{name}.log").read_text() for name in self._ports)

    def status_of(self, name: str, secret: str | None) -> int:
        """Send it an event that is signed with this secret, or not at all; return what it answers."""
        sent = wire.encode(event(type="noted"))
        headers = wire.stamp(sent, [signature.key_of(secret)] if secret else ())
        return ask(f"http://127.0.0.1:{self._ports[name]}/events/", sent.body.decode(), **headers)[0]

    def end(self) -> None:
        for name in [*self._running]:
            self.stop(name)


@contextlib.contextmanager
def rehearsing(folder: Path, names: tuple[str, ...]) -> Iterator[Rehearsal]:
    with free_ports(len(names)) as ports:
        found = Rehearsal(folder, dict(zip(names, ports, strict=True)))
        try:
            yield found
        finally:
            found.end()


@pytest.mark.parametrize("plan", PLANS)
def test_services_restarted_one_by_one_at_every_step_refuse_nobody(tmp_path: Path, plan: str) -> None:
    steps, names = PLANS[plan]
    with rehearsing(tmp_path, names) as fleet:
        # Given a fleet that works
        for name in names:
            fleet.start(name, steps[0])
        fleet.emit_everywhere()
        fleet.wait_until_all_are_handled()
        # When each step is deployed, service by service
        for step in steps[1:]:
            for name in names:
                fleet.stop(name)
                fleet.emit_everywhere()  # to one that is down, among others
                fleet.start(name, step)
                fleet.emit_everywhere()
                fleet.wait_until_all_are_handled()
        # Then everything was handled, once, and nobody was refused or warned of
        said = fleet.printed()
        assert re.findall(r"Refused.*|.*\b40[13]\b.*|.*unsigned.*|Traceback|.*ERROR.*", said) == []
        # And at the end what counted at the beginning counts no more
        for name in names:
            assert fleet.status_of(name, steps[0]["SECRETS"][0] if "SECRETS" in steps[0] else None) == 401


def test_a_step_left_out_is_seen(tmp_path: Path) -> None:
    # Given a rotation that forgets to announce the new secret
    with rehearsing(tmp_path, ("accounts", "payments")) as fleet:
        for name in ("accounts", "payments"):
            fleet.start(name, ROTATED[0])
        fleet.stop("accounts")
        fleet.start("accounts", ROTATED[-1])
        # When events go both ways, then both are refused: whoever looks for that finds it
        fleet.emit_everywhere()
        assert fleet.printed().count("Refused an event from 127.0.0.1: 401") == 2
