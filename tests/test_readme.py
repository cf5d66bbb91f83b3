"""The README's examples are real services: assembled from its blocks, started, asked, tested."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sqlite3
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

import aevents
from aevents.signature import new_secret
from tests.pages import ROOT, Page, Service, ask, free_ports, run, write
from tests.peers import eventually

README = ROOT / "README.md"
NAMES = ("accounts", "payments", "orders")

# What the README takes for granted: three Django projects, with their models and routes.
_SETTINGS = """
SECRET_KEY = "readme"
DEBUG = False
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "{name}.urls"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "{name}"]
DATABASES = {{
    "default": {{
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "{name}.sqlite3",
        "OPTIONS": {{"init_command": "PRAGMA journal_mode=WAL", "transaction_mode": "IMMEDIATE"}},
    }}
}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""
_MODEL = """
from django.db import models


class {model}(models.Model):
    user_id = models.IntegerField()
"""
_GIVEN = {
    "accounts/urls.py": """
from django.urls import path

from accounts import views

urlpatterns = [
    path("sign-up/", views.sign_up),
    path("sign-up-in-one/", views.sign_up_in_one),
    path("rename/", views.rename),
]
""",
    "payments/models.py": _MODEL.format(model="Account"),
    "orders/models.py": _MODEL.format(model="Customer"),
    "serve.py": """
import os
import sys

import django
import uvicorn

name, port = sys.argv[1:]
os.environ["DJANGO_SETTINGS_MODULE"] = f"{name}.settings"
django.setup()

from django.core.management import call_command

call_command("check", fail_level="WARNING")
call_command("migrate", run_syncdb=True, verbosity=0)
uvicorn.run(f"{name}.asgi:application", port=int(port))
""",
}


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    with free_ports(len(NAMES)) as free:
        yield dict(zip(NAMES, free, strict=True))


@pytest.fixture(scope="module", autouse=True)
def _secret() -> Iterator[None]:
    """What devops put into the environment of all services."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AEVENTS_SECRET", new_secret())
        yield


@pytest.fixture(scope="module")
def folder(ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's files, and for the other services the settings of the first under their own name."""
    folder = tmp_path_factory.mktemp("readme")
    files = Page(README).files()
    shown, served = files.pop("accounts/settings.py"), files.pop("accounts/asgi.py")
    for name in NAMES:
        files[f"{name}/asgi.py"] = served.replace("accounts", name)
        files[f"{name}/settings.py"] = _SETTINGS.format(name=name) + shown.replace(
            '"accounts"', f'"{name}"', 1
        )
        files[f"{name}/__init__.py"] = ""
    for name, port in ports.items():
        assert f"https://{name}.internal/" in files["devops/events.py"]
        files["devops/events.py"] = files["devops/events.py"].replace(
            f"https://{name}.internal/", f"http://127.0.0.1:{port}/"
        )
    write(folder, {**_GIVEN, **files})
    return folder


def test_its_three_services_tell_each_other_what_it_says(folder: Path, ports: dict[str, int]) -> None:
    with ExitStack() as stack:
        services = {}
        for name, port in ports.items():
            command = [sys.executable, "serve.py", name, str(port)]
            services[name] = Service(command, folder, port, folder / f"{name}.log")
            stack.callback(services[name].stop)

        # an async view with aemit
        status, told = _post(ports, "sign-up", "email=ada")
        assert (status, told) == (
            200,
            {"payments": "delivered", "orders": "delivered", "accounts": "delivered"},
        )

        # data and event together
        assert _post(ports, "sign-up-in-one", "email=grace") == (200, {"user_id": 2})
        eventually(lambda: _user_ids(folder / "payments.sqlite3", "payments_account") == [1, 2])
        eventually(lambda: _user_ids(folder / "orders.sqlite3", "orders_customer") == [1, 2])

        # a sync view with emit
        assert _post(ports, "rename", "user_id=1") == (200, {"ok": True})

        # one event by its id through the logs of both sides
        emitted = re.search(
            r"Emitted user-created (\S+) to payments, orders, accounts", services["accounts"].output
        )
        assert emitted
        assert f"Delivered user-created {emitted[1]} to payments" in services["accounts"].output
        assert f"Received user-created {emitted[1]} from accounts" in services["payments"].output
        handled = f"Handled user-created {emitted[1]} in payments.event_handlers.open_account"
        assert handled in services["payments"].output

        # and an event that nobody signed is refused
        told = ask(
            f"http://127.0.0.1:{ports['payments']}/events/",
            '{"event_type": "user-created", "payload": {"user_id": 7}}',
            **{"content-type": "application/json"},
        )
        assert told[0] == 401


def _post(ports: dict[str, int], path: str, form: str) -> tuple[int, Any]:
    status, body = ask(f"http://127.0.0.1:{ports['accounts']}/{path}/", form)
    return status, json.loads(body)


def _user_ids(database: Path, table: str) -> list[int]:
    with closing(sqlite3.connect(database)) as connection:
        return sorted(row[0] for row in connection.execute(f"SELECT user_id FROM {table}"))  # noqa: S608


def test_its_tests_pass(folder: Path) -> None:
    assert "Ran 1 test" in run("python -m django test accounts --settings accounts.settings", folder)
    pytest_here = (
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python -m pytest -p no:cacheprovider -p pytest_django.plugin"
    )
    assert " 1 passed" in run(f"{pytest_here} --ds=payments.settings payments/tests.py", folder)


def test_every_block_is_run() -> None:
    page = Page(README)

    # Imported by the services above or run as their tests:
    assert page.files().keys() == {
        "accounts/asgi.py",
        "accounts/settings.py",
        "accounts/tests.py",
        "accounts/views.py",
        "devops/events.py",
        "orders/events.py",
        "orders/urls.py",
        "payments/apps.py",
        "payments/event_handlers.py",
        "payments/tests.py",
        "payments/urls.py",
    }
    # Below:
    for _ in range(4):
        page.next("console")
    page.assert_all_were_run()


def test_its_commands_are_those_of_the_project() -> None:
    # They need a package index, so they are not run here: `.ci/run` runs the third one on a fresh
    # machine, and the demo has tests of its own. What they name must be there.
    page = Page(README)
    demo, crash, checks, install = (page.next("console").text for _ in range(4))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert shlex.split(demo) == ["$", "pip", "install", ".[demo]", "&&", "python", "-m", "aevents.demo"]
    assert shlex.split(crash) == ["$", "python", "-m", "aevents.demo", "--crash"]
    assert {"rich", "uvicorn"} == {name.split(">")[0] for name in project["optional-dependencies"]["demo"]}
    assert importlib.util.find_spec("aevents.demo.__main__")
    assert checks == "$ pip install tox && tox"
    assert (ROOT / "tox.ini").exists()
    assert install == "$ pip install ."


def test_its_claims_of_versions_are_those_of_the_package() -> None:
    text = README.read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert f"Python {project['requires-python'].removeprefix('>=')} and later" in text
    [django] = [name for name in project["dependencies"] if name.startswith("Django")]
    assert f"Django {django.partition('>=')[2]} and later" in text


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README.read_text())

    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_every_public_function_is_named() -> None:
    text = README.read_text()

    assert not [name for name in aevents.__all__ if f"`{name}" not in text and name not in ("Event",)]
