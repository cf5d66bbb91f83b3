"""The testing kit as users have it: a project of theirs, its tests run by the runners they use."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from aevents import recorder
from aevents.event import Event, new_id
from aevents.testing import Emitted
from tests.peers import Peer

ROOT = Path(__file__).parents[1]
PROJECT = Path(__file__).with_name("kit_project")
# The package brings its plugin along where it is installed; a bare checkout names it.
PLUGIN = [] if entry_points(group="pytest11", name="aevents") else ["-p", "aevents.pytest_plugin"]


class Project:
    """A copy of the user's project, and the service that its tests must not reach."""

    def __init__(self, path: Path, stock: socket.socket) -> None:
        self._path = path
        self._stock = stock

    def run(self, *command: str, **environ: str) -> str:
        """Run `python <command>` in the project; returns what it wrote."""
        port = self._stock.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-W", "error", *command],
            cwd=self._path,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "DJANGO_SETTINGS_MODULE": "kit_settings",
                "STOCK_URL": f"http://127.0.0.1:{port}/events/",
                **environ,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def write(self, name: str, code: str) -> None:
        (self._path / name).write_text(textwrap.dedent(code))

    def was_reached(self) -> bool:
        """Tell whether anybody has connected to the service."""
        self._stock.setblocking(False)
        try:
            connection, _ = self._stock.accept()
        except BlockingIOError:
            return False
        connection.close()
        return True


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    path = shutil.copytree(PROJECT, tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__"))
    with socket.create_server(("127.0.0.1", 0)) as stock:
        yield Project(path, stock)


def test_the_tests_of_a_project_with_pytest(project: Project) -> None:
    with Peer() as real:
        out = project.run(
            "-m", "pytest", "pytest_suite.py", *PLUGIN, "-q", "-p", "no:cacheprovider", REAL_URL=real.url
        )
        assert " passed" in out
        assert not {"failed", "skipped", "error"} & set(out.split())
        # By default nothing left; where a test asked for it, this did.
        assert not project.was_reached()
        assert [(request.event_type, request.payload) for request in real.requests] == [("told", {"n": 1})]


def test_the_tests_of_a_project_with_manage_py_test(project: Project) -> None:
    out = project.run("manage.py", "test", "-v1")

    assert "Ran 13 tests" in out
    assert out.rstrip().endswith("OK") or "\nOK\n" in out
    assert not project.was_reached()


def test_the_plugin_does_without_django_s_tests_where_no_test_asks_for_it(project: Project) -> None:
    project.write(
        "load.py",
        """
        import sys

        import aevents.pytest_plugin

        unwanted = {"aevents.testing", "aevents.views", "aevents.apps", "django.test", "rest_framework"}
        assert not unwanted & set(sys.modules)
        """,
    )
    project.run("load.py")


def test_a_suite_that_never_looks_keeps_no_more_than_a_bounded_number() -> None:
    event = Event(new_id(), "told", b"{}", "shop", datetime.now(UTC))
    for n in range(10_010):
        recorder.record(replace(event, id=str(n)), ())

    assert len(Emitted()) == 10_000
    assert Emitted()[-1].id == "10009"


def test_a_server_with_the_mail_backend_of_tests_sends_all_the_same(project: Project) -> None:
    project.write(
        "serve.py",
        """
        import django

        django.setup()
        from django.core import mail
        from django.core.mail.backends.locmem import EmailBackend

        from aevents import emit

        EmailBackend()
        assert mail.outbox == []  # what the test environment has too
        assert emit("told", {"n": 1}).delivered
        """,
    )
    with Peer() as real:
        project.run("serve.py", STOCK_URL=real.url)
        assert real.payloads == [{"n": 1}]
