"""Every example of the documentation runs: what a page shows is what happens.

A page is read as the reader reads it (`tests.pages`). Each block must be taken by a test, or the page's
test fails. `test_readme.py` reads the README in the same way.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib
import json
import re
import shlex
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import trustme
import uvicorn
from asgiref.sync import async_to_sync
from django.core.asgi import get_asgi_application
from django.db import OperationalError
from django.dispatch import Signal
from django.test import RequestFactory

import aevents
from aevents import (
    Event,
    batch,
    breaker,
    checks,
    checks_of_places,
    checks_of_trust,
    emit,
    flush,
    replies,
    retry,
    signals,
    subscribe_to,
    wire,
)
from aevents.commands import VERBS
from aevents.emission import Outcome
from aevents.errors import Again, Dead, Refused, Unavailable
from aevents.event import Message
from aevents.management.commands.aevents import Command
from aevents.settings import Limits, Settings
from aevents.subscriptions import handlers_of
from tests import test_network, test_tls
from tests.ledger import Ledger
from tests.pages import DOCS, ROOT, Page, Reader, ask, commands, curl, free_ports, is_shown, run, write
from tests.peers import Peer, eventually, refusing
from tests.process_project.running import COMMANDS
from tests.project.models import Note

# ------------------------------------------------------------------------------------- the tutorial


def test_the_tutorial_does_what_it_says_from_the_empty_folder_to_its_tests(tmp_path: Path) -> None:
    page = Page(DOCS / "tutorial.md")

    with free_ports(2) as (accounts, mailer):
        Reader(page, tmp_path, {"8001": accounts, "8002": mailer}).follow()

    page.assert_all_were_run()


# ------------------------------------------------------------------------------------- the settings


def test_the_settings_page_lists_every_key_and_limit_with_its_default_and_nothing_else() -> None:
    page = Page(DOCS / "settings.md")
    keys, _, limits, _ = page.tables()

    assert {_code(row[0]): ast.literal_eval(_code(row[1])) for row in keys} == {
        **_defaults(Settings),
        "LIMITS": {},
    }
    assert {_code(row[0]): ast.literal_eval(_code(row[1])) for row in limits} == _defaults(Limits)
    assert [_code(row[0]) for row in keys] == [field.name for field in dataclasses.fields(Settings)]
    for name, _, unit, meaning in limits:
        assert name.endswith("_S`") == (unit == "seconds"), name
        assert name.endswith("_BYTES`") == (unit == "bytes"), name
        assert meaning


def test_the_settings_page_lists_every_system_check_and_nothing_else() -> None:
    page = Page(DOCS / "settings.md")
    listed = {_code(row[0]).removeprefix("aevents.") for row in page.tables()[3]}

    code = "".join(
        Path(module.__file__).read_text() for module in (checks, checks_of_places, checks_of_trust)
    )
    assert listed == set(re.findall(r'"([EW]\d{3})"', code))


def test_the_settings_on_the_settings_page_pass_the_system_checks(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(DOCS / "settings.md")
    files = page.files()
    write(tmp_path, {"devops/events.py": files.pop("devops/events.py")})
    monkeypatch.syspath_prepend(tmp_path)

    settings.DEBUG = True  # W005 is right about the second one, which has no UNSIGNED
    for text in files.values():
        module: dict[str, Any] = {}
        exec(text, module)  # noqa: S102 - our own page
        settings.AEVENTS = module["AEVENTS"]
        assert checks.check_settings() == []

    _forget("devops", monkeypatch)
    assert files.keys() == {"accounts/settings.py", "payments/settings.py"}
    page.assert_all_were_run()


def test_the_mapping_on_the_settings_page_reaches_whom_the_page_says(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"devops/events.py": Page(DOCS / "settings.md").files()["devops/events.py"]})
    monkeypatch.syspath_prepend(tmp_path)
    settings.AEVENTS = {
        "SERVICES": "devops.events.SERVICES",
        "SUBSCRIPTIONS": "devops.events.SUBSCRIPTIONS",
        "ENABLED": None,  # recorded: nobody listens at the page's addresses
    }

    emission = emit("user-created", {})

    _forget("devops", monkeypatch)
    assert [result.service for result in emission.results] == ["payments", "orders", "accounts"]


def _code(cell: str) -> str:
    return cell.strip("`")


def _defaults(settings: type) -> dict[str, Any]:
    return {field.name: getattr(settings(), field.name) for field in dataclasses.fields(settings)}


# ---------------------------------------------------------------------------------- the how-to pages


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Page], Any]]:
    """Make a page's files the modules of a package, whose one model is that of the tests' project."""
    models = types.ModuleType("notes.models")
    models.Note = Note  # type: ignore[attr-defined]

    def imported(page: Page, package: str = "notes") -> Any:
        files = page.files()
        assert {name.split("/")[0] for name in files} == {package}
        write(tmp_path, {**files, f"{package}/__init__.py": ""})
        monkeypatch.syspath_prepend(tmp_path)
        _forget(package, monkeypatch)
        monkeypatch.setitem(sys.modules, "notes.models", models)
        modules = {Path(name).stem: importlib.import_module(name[:-3].replace("/", ".")) for name in files}
        return types.SimpleNamespace(**modules)

    yield imported
    for package in ("notes", "orders"):
        _forget(package, monkeypatch)


def _forget(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)


def _tell(settings: Any, search: str, **more: Any) -> None:
    settings.AEVENTS = {
        "SERVICE": "notes",
        "ENABLED": True,
        "UNSIGNED": "accept",
        "SERVICES": {"search": search},
        "SUBSCRIPTIONS": {"note-written": ["search"]},
        **more,
    }


@pytest.mark.django_db(transaction=True)
def test_the_transactions_page(notes: Any, settings: Any, tmp_path: Path) -> None:
    page = Page(DOCS / "transactions.md")
    modules = notes(page)
    with Peer() as search:
        _tell(settings, search.url)

        # emit inside atomic(): queued, and gone after the commit
        assert [result.outcome for result in modules.services.write("one").results] == ["queued"]
        assert flush()
        assert len(search.requests) == 1

        # a savepoint takes its event with it
        modules.imports.import_all(["two", "", "three"])
        assert flush()
        assert {Note.objects.get(pk=p["note_id"]).text for p in search.payloads} == {"one", "two", "three"}

        # from an async view
        request = RequestFactory().post("/", {"text": "four"})
        answer = async_to_sync(modules.views.write_note)(request)
        assert answer.status_code == 201
        assert flush()
        assert [request.id for request in search.requests][3:] == [json.loads(answer.content)["event"]]

        # nothing at all
        modules.fixtures.load(["old", "older"])
        assert flush()
        assert len(search.requests) == 4
        assert Note.objects.filter(text__startswith="old").count() == 2

        # a script that leaves by os._exit
        write(tmp_path, {**_PROJECT, "address.py": f"SEARCH = {search.url!r}\n"})
        run("python script.py", tmp_path)
        assert [request.event_type for request in search.requests[4:]] == ["note-written"]
    page.assert_all_were_run()


def test_the_errors_page_shows_what_comes_back(notes: Any, settings: Any) -> None:
    page = Page(DOCS / "errors-and-retries.md")
    modules = notes(page)
    announce, lost = modules.services.announce, modules.metrics.lost

    with Peer() as search:
        _tell(settings, search.url)
        assert announce(1) == "delivered"
        assert announce(object()).startswith("wrong call: the payload of 'note-written' is not JSON")
    assert not lost

    with refusing() as url:
        _tell(settings, url)
        assert re.match("search: .*Cannot connect to host", announce(2))
    assert lost == {"search": 1}

    # its two handlers, one of which fails at first
    _tell(settings, "", SERVICES={}, SUBSCRIPTIONS={"note-written": ["notes"]}, STORE=None)
    [result] = emit("note-written", {"note_id": 3}).results
    assert (result.outcome, result.attempts) == ("delivered", 2)
    assert sorted(modules.events.done) == ["index", "publish", "publish"]
    page.assert_all_were_run()


def test_the_errors_page_says_of_every_status_what_is_made_of_it() -> None:
    rows = Page(DOCS / "errors-and-retries.md").tables()[1]
    said: dict[int, str] = {}
    for answer, then in rows:
        for first, last in re.findall(r"\b(\d{3})(?:–(\d{3}))?\b", answer.partition("(")[0]):
            said.update(dict.fromkeys(range(int(first), int(last or first) + 1), then))
    others = next(then for answer, then in rows if answer.startswith("any other status"))

    for status in range(200, 600):
        assert said.get(status, others).partition(";")[0].partition(":")[0] == _made_of(status), status


def _made_of(status: int) -> str:
    try:
        retry.judge(status)
    except Refused:
        return "failed"
    except Unavailable as error:
        return "failed" if error.slowly else "tried again"
    return "delivered"


def test_the_numbers_in_the_prose_are_those_of_the_code() -> None:
    errors, readme = (DOCS / "errors-and-retries.md").read_text(), (ROOT / "README.md").read_text()
    limits = Limits()

    for text, stated in {
        errors: [
            f"at most {limits.TRIES} times (`TRIES`)",
            f"later than {limits.CALL_S:g} s (`CALL_S`)",
            f"at most {limits.ATTEMPT_S:g} s (`ATTEMPT_S`)",
            f"at most {limits.CONNECT_S:g} s (`CONNECT_S`)",
            f"after {breaker.FAILURES_IN_A_ROW} failures in a row",
            f"have taken {breaker.FAILING_FOR_S:g} s",
            f"half of {breaker.HALF_OF} or more",
            f"about {breaker.WINDOW_S:g} s have failed",
            f"a pause of about {breaker.FIRST_PAUSE_S:g} s",
            f"up to about {breaker.LAST_PAUSE_S:g} s",
            f"a reserve of {breaker.RETRY_RESERVE:g} for each service",
            f"for {limits.REMEMBER_S / 60:g} minutes",
            f"larger than {limits.EVENT_BYTES // 1024} KiB",
            f"deeper than {limits.NESTING} levels",
            f"{limits.IN_FLIGHT} requests",
        ],
        readme: [
            f"up to {limits.TRIES} times within {limits.CALL_S:g} s",
            f"After {breaker.FAILURES_IN_A_ROW} failures in a row",
        ],
    }.items():
        words = " ".join(text.split())
        assert not [number for number in stated if number not in words]


def test_the_page_on_events_in_handlers(notes: Any, settings: Any) -> None:
    page = Page(DOCS / "events-in-handlers.md")
    told = ("order-placed", "order-paid", "order-shipped")
    settings.AEVENTS = {
        "SERVICE": "orders",
        "SUBSCRIPTIONS": {event_type: ["orders"] for event_type in told},
        "STORE": None,
        "ENABLED": True,
    }
    modules = notes(page, "orders")

    assert emit("order-placed", {"order_id": 1}).delivered
    assert flush()

    assert modules.events.seen == [("order-paid", "orders", 1)]
    named = [_code(name) for row in page.tables()[0] for name in row[0].split(", ")]
    assert set(named) - {"payload"} == {field.name for field in dataclasses.fields(Event)} - {"data"}
    page.assert_all_were_run()


def test_the_page_on_the_admin_names_permissions_and_actions_that_there_are() -> None:
    page = Page(DOCS / "admin.md")
    rows = page.tables()[0]
    code = (ROOT / "aevents" / "admin.py").read_text()

    permissions = {_code(row[3]).removeprefix("aevents.") for row in rows}
    assert not [name for name in permissions if f'"{name}"' not in code]
    assert not [row[0] for row in rows if f"def {row[0].lower()}" not in code]
    page.assert_all_were_run()


def test_the_page_on_the_store(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(DOCS / "store.md")
    files = page.files()
    module: dict[str, Any] = {}
    exec(files["accounts/settings.py"], module)  # noqa: S102 - our own page
    settings.AEVENTS = module["AEVENTS"]
    assert [each for each in checks.check_settings() if each.id != "aevents.W006"] == []
    exec(files["payments/events.py"], module)  # noqa: S102 - our own page
    assert handlers_of("user-created")[0].name == "open-account"
    with pytest.raises(Dead):
        module["open_account"]({"user_id": -1})
    with pytest.raises(Again):
        module["open_account"]({"user_id": 1, "bank": "closed"})

    # Each promise names the tests that show it, and they are there.
    shown = [row[1] for row in page.tables()[1]]
    assert len(shown) >= 12
    for text in shown:
        file, *tests = re.findall(r"`([^`]+)`", text)
        code = (ROOT / "tests" / file).read_text()
        assert tests
        assert not [name for name in tests if f"def {name}(" not in code], text
    page.assert_all_were_run()


def test_the_tests_on_the_page_on_testing_pass(tmp_path: Path) -> None:
    page = Page(DOCS / "testing.md")
    files = page.files()
    own = {"notes/__init__.py": "", "address.py": "SEARCH = 'http://search/'\n"}
    write(tmp_path, {**_PROJECT, **files, **own})

    told = run(f"{_PYTEST} --ds=site_settings notes/*test*.py", tmp_path)

    assert f" {sum(text.count('def test_') for text in files.values())} passed" in told
    page.assert_all_were_run()


# The plugins by name: pytest finds that of aevents by itself only where the package is installed.
_PYTEST = (
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python -m pytest -p no:cacheprovider"
    " -p pytest_django.plugin -p pytest_asyncio.plugin -p aevents.pytest_plugin"
)

# What the pages on transactions and testing take for granted: a project with an app and its model.
_PROJECT = {
    "site_settings.py": """
from address import SEARCH

SECRET_KEY = "pages"
USE_TZ = True
INSTALLED_APPS = ["aevents", "notes"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "notes.sqlite3"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AEVENTS = {
    "SERVICE": "notes",
    "SERVICES": {"search": SEARCH},
    "SUBSCRIPTIONS": {"note-written": ["search"]},
}
""",
    "notes/models.py": """
from django.db import models


class Note(models.Model):
    text = models.CharField(max_length=100)
""",
    "script.py": """
import os

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
django.setup()

from django.core.management import call_command
from notes.script import main

call_command("migrate", run_syncdb=True, verbosity=0)
main()
""",
}


# ------------------------------------------------------------------------------------------ the wire


@contextlib.contextmanager
def served() -> Iterator[str]:
    """This very process behind uvicorn, so that the handlers a test subscribes are those that run."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(get_asgi_application(), log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            eventually(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/events/"
        finally:
            server.should_exit = True
            thread.join()


def test_the_wire_page_shows_the_request_to_the_byte(settings: Any) -> None:
    page = Page(DOCS / "wire.md")
    with Peer() as payments:
        settings.AEVENTS = {
            "SERVICE": "accounts",
            "ENABLED": True,
            "SERVICES": {"payments": payments.url},
            "SUBSCRIPTIONS": {"user-created": ["payments"]},
        }
        emission = emit("user-created", {"user_id": 7})
    [request] = payments.requests

    head, _, body = page.next("http").text.partition("\n\n")
    line, *headers = head.splitlines()
    assert line == f"{request.method} {request.path} HTTP/1.1"
    assert body.encode() == request.body
    shown = {name.lower(): value for name, _, value in (header.partition(": ") for header in headers)}
    differ = {"host", "webhook-id", "ce-id", "ce-time", "webhook-timestamp"}
    assert list(shown) == list(request.headers)
    for name, value in request.headers.items():
        assert value == shown[name] or name in differ, name
        assert re.sub(r"[0-9a-f]", "x", value) == re.sub(r"[0-9a-f]", "x", shown[name]) or name == "host"
    assert request.headers["webhook-id"] == request.headers["ce-id"] == emission.id


def test_the_wire_page_lists_every_header() -> None:
    listed = {_code(row[0]) for row in Page(DOCS / "wire.md").tables()[0]}

    # The page names the first two elsewhere; nothing signs yet.
    assert listed == {*wire.HEADERS} - {"content-type", "content-encoding", "webhook-signature"}


def test_the_commands_of_the_wire_page_get_the_answers_it_shows(settings: Any) -> None:
    page = Page(DOCS / "wire.md")
    page.next("http")  # the test above
    settings.AEVENTS = {"SERVICE": "mailer", "UNSIGNED": "accept", "STORE": None, "ENABLED": True}
    subscribe_to("user-created", lambda payload: None, name="one")
    subscribe_to("order-paid", lambda payload: None, name="two")

    with served() as url:
        for _ in range(3):
            for command, shown in commands(page.next("console")):
                _, real = curl(command.replace("http://127.0.0.1:8002/events/", url))
                assert is_shown(shown, real), real
    page.next("http")  # the test below
    page.next("json")
    page.assert_all_were_run()


def test_the_wire_page_shows_the_batch_to_the_byte(settings: Any) -> None:
    page = Page(DOCS / "wire.md")
    page.next("http")
    head, _, body = page.next("http").text.partition("\n\n")
    _, *headers = head.splitlines()
    shown = {name: value for name, _, value in (header.partition(": ") for header in headers)}
    settings.AEVENTS = {"SERVICE": "mailer", "UNSIGNED": "accept", "STORE": None, "ENABLED": True}
    (event,) = batch.decode(Message(shown, body.strip().encode()))
    assert isinstance(event, Event)
    assert batch.encode([event]).body == body.strip().encode()
    assert list(wire.stamp(batch.encode([event]))) == list(shown)

    # And the answer to one that waits for its turn in vain
    (listed,) = json.loads(page.next("json").text)["events"]
    detail = replies.given_back(event, "it was not its turn in time")
    assert batch.verdict(event.id, detail) == listed


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_the_wire_page_lists_the_answers_that_there_are(
    settings: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(DOCS / "wire.md")
    settings.AEVENTS = {"SERVICE": "mailer", "UNSIGNED": "accept", "STORE": None, "ENABLED": True}
    subscribe_to("good", lambda payload: None, name="good")
    subscribe_to("bad", lambda payload: 1 / 0, name="bad")
    listed = [(int(row[0]), json.loads(_code(row[1]).replace("...", "null"))) for row in page.tables()[1]]

    content = {"content-type": "application/json"}
    with served() as url:
        real = [
            ask(url, _body("good"), **content, **{"webhook-id": "1"}),
            ask(url, _body("unknown"), **content),
            ask(url, _body("good"), **content, **{"webhook-id": "1"}),
        ]
        settings.AEVENTS = {**settings.AEVENTS, "STORE": ledger.alias, "INBOX": True}
        real.append(ask(url, _body("good"), **content))
        with monkeypatch.context() as patch:
            patch.setattr("aevents.store.arrive", _no_database)
            unavailable = ask(url, _body("good"), **content)
        ledger.is_empty()
        settings.AEVENTS = {**settings.AEVENTS, "STORE": None, "INBOX": False}
        real.append(ask(url, "[]", **content))
        settings.AEVENTS = {**settings.AEVENTS, "UNSIGNED": "refuse"}
        real.append(ask(url, _body("good"), **content))
        settings.AEVENTS = {**settings.AEVENTS, "UNSIGNED": "accept", "SENDERS": {"good": ["payments"]}}
        real.append(ask(url, _body("good"), **content))
        settings.AEVENTS = {**settings.AEVENTS, "SENDERS": {}}
        real += [
            ask(url),
            ask(url, "x" * (Limits.BODY_BYTES + 1), **content),
            ask(url, _body("good")),
            ask(url, _body("bad"), **content),
            unavailable,
        ]

    assert [(status, _shape(json.loads(body))) for status, body in real] == listed


def _no_database(entries: Any) -> Any:
    raise OperationalError("connection refused")


def _body(event_type: str) -> str:
    return json.dumps({"event_type": event_type, "payload": {}})


def _shape(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value if key == "status" else None for key, value in content.items()}


# ---------------------------------------------------------------------------- servers and processes


def test_the_servers_page_shows_an_application_and_names_every_server_that_is_tested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = Page(DOCS / "servers.md")
    (code,) = page.files().values()
    title, *options = page.next("ini").text.splitlines()
    assert title == "[uwsgi]"
    for option in options:  # what the page says is what is tested
        words = "--" + option.replace(" = ", "=", 1).removesuffix("=true")
        assert words in COMMANDS["uWSGI"]
    page.assert_all_were_run()
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.settings")
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - our own page

    sent: list[dict[str, Any]] = []

    async def live_and_end() -> None:
        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await names["application"]({"type": "lifespan"}, receive, send)

    async_to_sync(live_and_end)()
    assert [m["type"] for m in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    lines = " ".join(row[0] for row in page.tables()[0])
    assert not [
        word for server in COMMANDS for word in server.split() if word in SERVER_WORDS and word not in lines
    ]


SERVER_WORDS = {"uvicorn", "granian", "ASGI", "WSGI", "gunicorn", "gthread", "sync", "gevent", "runserver"}
SERVER_WORDS |= {"uWSGI", "threads"}


def test_the_tls_page_s_settings_pass_the_checks_and_its_servers_are_those_that_are_tested(
    settings: Any, tmp_path: Path
) -> None:
    page = Page(DOCS / "tls.md")
    ca = trustme.CA()
    ours = ca.issue_cert("accounts@example")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    ours.cert_chain_pems[0].write_to_path(tmp_path / "client.crt")
    ours.private_key_pem.write_to_path(tmp_path / "client.key")
    (code,) = page.files().values()
    module: dict[str, Any] = {}

    exec(code, module)  # noqa: S102 - our own page
    settings.AEVENTS = module["AEVENTS"]
    assert {message.id for message in checks.check_settings()} == {"aevents.E009"}
    exec(code.replace("/run/tls", str(tmp_path)), module)  # noqa: S102 - our own page
    settings.AEVENTS = module["AEVENTS"]
    assert checks.check_settings() == []

    for server in ("uvicorn", "gunicorn"):
        ((command, _),) = commands(page.next("console"))
        program, _, *options = shlex.split(command)
        assert program == server
        tested = [option.format(folder="/run/tls") for option in test_tls.OPTIONS[server]]
        assert options[-len(tested) :] == tested
    page.next("nginx")  # which is not here
    page.assert_all_were_run()


def test_the_processes_page_shows_what_celery_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(DOCS / "processes.md")
    (code,) = page.files().values()
    assert page.next("text").text.splitlines()[1] == "The process ended with 1 deliveries undone"
    page.assert_all_were_run()
    # Given Celery's signal, without Celery
    receivers: list[Callable[..., None]] = []
    celery = types.ModuleType("celery.signals")
    shutdown = types.SimpleNamespace(connect=receivers.append)
    monkeypatch.setattr(celery, "worker_process_shutdown", shutdown, raising=False)
    monkeypatch.setitem(sys.modules, "celery.signals", celery)
    monkeypatch.setitem(sys.modules, "celery", types.ModuleType("celery"))
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - our own page

    # When a child ends, it flushes
    flushed: list[float] = []
    monkeypatch.setitem(names, "flush", lambda timeout_s: flushed.append(timeout_s))
    receivers[0](sender=None, pid=1, exitcode=0)
    assert flushed == [5]


# ------------------------------------------------------------------- the command, and the runbook


def test_the_page_on_the_command_has_every_verb_with_its_options_and_nothing_else() -> None:
    text = Page(DOCS / "commands.md").text
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))

    assert list(sections) == list(VERBS)
    for name, verb in VERBS.items():
        parser = argparse.ArgumentParser(add_help=False)
        verb.add_arguments(parser)
        listed = re.findall(r"^\| `(--[\w-]+)` \|", sections[name], re.MULTILINE)
        assert sorted(listed) == sorted(
            option for action in parser._actions for option in action.option_strings
        )


@pytest.mark.parametrize("page", [Page(DOCS / "commands.md"), Page(DOCS / "runbook.md")])
def test_each_command_on_the_pages_on_the_command_is_one(page: Page) -> None:
    parser = Command().create_parser("manage.py", "aevents")
    shown = re.findall(r"`(?:python )?manage\.py aevents ?([^`]*)`", page.text.replace("\n", " "))

    assert shown
    for words in shown:
        if words != "--help" and not words.endswith(" --help"):
            parser.parse_args(shlex.split(words))
    page.assert_all_were_run()


# ------------------------------------------------------------------------------------- all the pages


def test_every_page_is_in_the_index_and_read_by_a_test() -> None:
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    index = (DOCS / "index.md").read_text()
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))

    assert {line for line in index.splitlines() if line in pages} == pages
    assert not [page for page in pages if f'DOCS / "{page}.md"' not in tests]


@pytest.mark.parametrize("name", ["index.md", "reference.md"])
def test_a_page_without_examples_has_none(name: str) -> None:
    Page(DOCS / name).assert_all_were_run()


def test_the_faults_on_the_page_are_those_that_are_tested() -> None:
    page = Page(DOCS / "network.md")
    page.assert_all_were_run()
    told = {
        fault: (_code(outcome), int(tries))
        for faults, outcome, tries, _ in page.tables()[0]
        for fault in faults.split("; ")
    }

    tries_of = {test_network.TRIES: Limits.TRIES, 1: 1}
    assert told == {name: (c.outcome, tries_of[c.tries]) for name, c in test_network.CASES.items()}


def test_the_reference_names_all_that_is_public() -> None:
    reference = Page(DOCS / "reference.md").text
    named = set(re.findall(r"^\.\. auto(?:function|class|exception):: (\w+)$", reference, re.MULTILINE))

    assert named | {"InvalidEvent"} == set(aevents.__all__)  # InvalidEvent stands among the errors


def test_the_reference_names_every_signal() -> None:
    named = re.findall(r"^\.\. autodata:: (\w+)$", Page(DOCS / "reference.md").text, re.MULTILINE)

    assert named == [name for name, value in vars(signals).items() if isinstance(value, Signal)]


def test_the_outcomes_on_the_pages_are_those_that_there_are() -> None:
    rows = Page(DOCS / "errors-and-retries.md").tables()[0]

    assert {_code(row[0]) for row in rows} == {*get_args(Outcome)}
