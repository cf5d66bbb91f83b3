"""The system checks: each message names the key, the value and the mend, and no message a secret."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from django.core.checks import CheckMessage, Error, Warning, run_checks
from django.db import connections

from aevents.checks import check_settings
from aevents.settings import KEYS, LIMIT_KEYS

Check = Callable[..., list[CheckMessage]]
GOOD: dict[str, Any] = {
    "SERVICE": "accounts",
    "SERVICES": {
        "accounts": "https://accounts.internal/events/",
        "payments": "https://payments.internal/events/",
        "orders": {"URL": "http://orders.internal:8000/events/"},
    },
    "SUBSCRIPTIONS": {"user-created": ["payments", "orders"], "audit-*": ("accounts",), "nobody": []},
    "UNSIGNED": "accept",
    "ENABLED": True,
}
SERVICES = GOOD["SERVICES"]
SUBSCRIPTIONS = GOOD["SUBSCRIPTIONS"]
NOT_A_MAP = ["payments"]


@pytest.fixture
def check(settings: Any) -> Check:
    """Check good settings with these keys in their place."""

    def run(more: dict[Any, Any] | None = None, **keys: Any) -> list[CheckMessage]:
        settings.AEVENTS = {**GOOD, **keys, **(more or {})}
        return check_settings()

    return run


def the_only(messages: list[CheckMessage], number: str) -> CheckMessage:
    assert [message.id for message in messages] == [f"aevents.{number}"], messages
    (message,) = messages
    assert isinstance(message, Error if number.startswith("E") else Warning)
    assert message.hint
    return message


# What is good


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"SERVICES": f"{__name__}.SERVICES", "SUBSCRIPTIONS": f"{__name__}.SUBSCRIPTIONS"},
        {"STORE": None, "STRICT": False, "ENABLED": False, "AUTODISCOVER": False},
        {"STORE": "other", "STRICT": None, "ENABLED": None, "UNSIGNED": "refuse"},
        {"LIMITS": {"CALL_S": 2.5, "TRIES": 1}, "TRANSPORTS": {"http": {}}},
        {"OUTBOX": True, "INBOX": True, "RELAY": False, "HISTORY_DAYS": 0.5, "SCHEDULE": [0.5, 1]},
        {"OUTBOX": ["user-created", "order-*"], "HISTORY_DAYS": 0, "SCHEDULE": (60,)},
        {"OUTBOX": False, "INBOX": False, "STORE": None},
        {"OUTBOX": [], "STORE": None},
        {"SERVICES": {"me": "HTTP://user:s3cret@host:1/x?y", "r": "memory://r", "l": "local://"},
         "SUBSCRIPTIONS": {"x": {"me", "accounts"}}},
    ],
)  # fmt: skip
def test_good_settings_say_nothing(check: Check, keys: dict[str, Any]) -> None:
    assert check(**keys) == []


def test_one_s_own_entry_needs_no_url_and_no_entry(check: Check) -> None:
    assert check(SERVICES={"accounts": None}, SUBSCRIPTIONS={"x": ["accounts"]}) == []
    assert check(SERVICES={}, SUBSCRIPTIONS={"x": ["accounts"]}) == []


def test_the_check_is_registered_under_the_tag_aevents(settings: Any) -> None:
    settings.AEVENTS = {**GOOD, "SERVICS": {}}
    assert "aevents.E002" in [message.id for message in run_checks()]
    assert "aevents.E002" in [message.id for message in run_checks(tags=["aevents"])]


# One message each


def test_w001_no_settings_at_all(settings: Any) -> None:
    del settings.AEVENTS
    message = the_only(check_settings(), "W001")
    assert message.msg == "AEVENTS is not set: no service is told of any event."
    assert message.hint == "Set AEVENTS in the settings."


def test_w002_no_name_of_one_s_own(check: Check) -> None:
    message = the_only(check(SERVICE="", SUBSCRIPTIONS={}), "W002")
    assert "AEVENTS['SERVICE'] is not set" in message.msg


def test_w003_threads_that_are_not_threads(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gevent.monkey", SimpleNamespace(is_module_patched=lambda name: True))
    message = the_only(check(), "W003")
    assert "gevent has patched the threads" in message.msg


def test_w003_where_uwsgi_runs_no_threads(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt={}))
    message = the_only(check(), "W003")
    assert "uWSGI runs without threads: set enable-threads = true" in message.msg


def test_w004_not_installed(check: Check, settings: Any) -> None:
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "aevents"]
    message = the_only(check(), "W004")
    assert "'aevents' is not in INSTALLED_APPS" in message.msg


def test_w005_everything_that_arrives_is_refused(check: Check, settings: Any) -> None:
    message = the_only(check(UNSIGNED=None), "W005")
    assert "AEVENTS['UNSIGNED'] is not set and DEBUG is off" in message.msg
    assert "'accept'" in str(message.hint)

    assert check(UNSIGNED=None, ENABLED=None) == []  # a test runner switches DEBUG off by itself
    settings.DEBUG = True
    assert check(UNSIGNED=None) == []


def test_e001_no_dict(settings: Any) -> None:
    settings.AEVENTS = ["SERVICES"]
    message = the_only(check_settings(), "E001")
    assert message.msg == "AEVENTS must be a dict, not a list."


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("SERVICS", "Did you mean 'SERVICES'?"),
        ("SUBSCRIPTION", "Did you mean 'SUBSCRIPTIONS'?"),
        ("service", "There are: AUTODISCOVER, BROKERS, ENABLED, HISTORY_DAYS, "),
        # What a later version knows must not be thought to work in this one.
        *((key, "") for key in ("DISCOVERY",)),
        (7, "There are: "),
    ],
)
def test_e002_an_unknown_key(check: Check, key: Any, hint: str) -> None:
    message = the_only(check({key: True}), "E002")
    assert message.msg == f"AEVENTS has an unknown key {key!r}."
    assert hint in str(message.hint)


def test_e002_an_unknown_limit(check: Check) -> None:
    message = the_only(check(LIMITS={"BODY_BITES": 1}), "E002")
    assert message.msg == "AEVENTS['LIMITS'] has an unknown key 'BODY_BITES'."
    assert message.hint == "Did you mean 'BODY_BYTES'?"


def test_e002_an_unknown_key_of_a_service(check: Check) -> None:
    services = {**SERVICES, "orders": {"URL": "https://orders/", "SECRET": ["whsec_s3cret"]}}
    message = the_only(check(SERVICES=services), "E002")
    assert message.msg == "AEVENTS['SERVICES']['orders'] has an unknown key 'SECRET'."
    assert "s3cret" not in str(message)


@pytest.mark.parametrize(
    ("key", "value", "mend"),
    [
        ("SERVICE", 7, "a printable string"),
        ("SERVICE", "two\nlines", "a printable string"),
        ("SERVICE", ["accounts"], "a printable string"),
        ("UNSIGNED", "yes", "'accept', 'warn', 'refuse' or None"),
        ("UNSIGNED", True, "'accept', 'warn', 'refuse' or None"),
        ("UNSIGNED", {}, "'accept', 'warn', 'refuse' or None"),
        ("STORE", False, "a database alias or None"),
        *(
            ("OUTBOX", value, "True, False or a list of event types and patterns")
            for value in ("user-created", None, 1, [7], ["two\nlines"], [""], {"user-created": True})
        ),
        ("INBOX", ["user-created"], "True or False"),
        ("INBOX", None, "True or False"),
        ("RELAY", 0, "True or False"),
        *(
            ("SCHEDULE", value, "a list of numbers above 0, one at least")
            for value in (None, 5, [], "1", {1: 2}, [1, 0], [1, "2"], [True], [float("inf")])
        ),
        *(("HISTORY_DAYS", value, "a number, 0 or above") for value in (None, -1, "7", False, float("nan"))),
        ("STRICT", "False", "True, False or None"),
        ("ENABLED", 0, "True, False or None"),
        ("AUTODISCOVER", None, "True or False"),
    ],
)
def test_e003_a_value_of_the_wrong_kind(check: Check, key: str, value: Any, mend: str) -> None:
    messages = [message for message in check(**{key: value}) if message.id != "aevents.E007"]
    message = the_only(messages, "E003")
    assert message.msg == f"AEVENTS[{key!r}] is {value!r}."
    assert message.hint == f"It must be {mend}."


def test_e003_a_store_that_is_no_database(check: Check) -> None:
    message = the_only(check(STORE="events"), "E003")
    assert message.msg == "AEVENTS['STORE'] is 'events', which is not in DATABASES."


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let DATABASES hold another one: `events`. It cannot be opened."""

    def add(engine: str = "django.db.backends.sqlite3", **keys: Any) -> None:
        found = {"ENGINE": engine, "NAME": "/nowhere/at-all.sqlite3", "OPTIONS": {}, **keys}
        monkeypatch.setitem(connections.settings, "events", found)

    return add


@pytest.mark.parametrize(("key", "value"), [("OUTBOX", True), ("OUTBOX", ["user-*"]), ("INBOX", True)])
def test_e008_what_is_to_be_stored_and_cannot(check: Check, key: str, value: Any, settings: Any) -> None:
    message = the_only(check(STORE=None, **{key: value}), "E008")
    assert message.msg == f"AEVENTS[{key!r}] is on, but nothing can be stored: AEVENTS['STORE'] is None."
    assert message.hint == f"Let STORE name a database, or take {key} out."

    assert [m.id for m in check(STORE="nowhere", **{key: value})] == ["aevents.E003"]  # one is enough

    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "aevents"]
    messages = {message.id: message for message in check(**{key: value})}
    assert messages.keys() == {"aevents.E008", "aevents.W004"}
    assert "nothing can be stored: 'aevents' is not in INSTALLED_APPS." in messages["aevents.E008"].msg


def test_e008_where_there_is_no_database(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings, "default", {"ENGINE": "django.db.backends.dummy"})

    assert check() == []
    numbers = {message.id for message in check(OUTBOX=True, INBOX=True)}
    assert numbers == {"aevents.E008"}
    message = the_only(check(OUTBOX=True), "E008")
    assert "is on, but nothing can be stored: there is no database." in message.msg


def test_w006_a_schedule_that_lasts_longer_than_arrivals_are_remembered(check: Check) -> None:
    day = 86_400
    message = the_only(check(SCHEDULE=[day] * 10), "W006")
    assert message.msg == (
        "AEVENTS['SCHEDULE'] lasts up to 15.0 days and LIMITS['SEEN_DAYS'] is 14: a duplicate may come"
        " when it is not known any more."
    )
    assert message.hint == "Make SCHEDULE shorter, or SEEN_DAYS more."

    assert check(SCHEDULE=[day] * 9) == []
    assert check(SCHEDULE=[day] * 10, LIMITS={"SEEN_DAYS": 15.5}) == []
    the_only(check(LIMITS={"SEEN_DAYS": 4}), "W006")  # the default schedule lasts three days, or almost five


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({}, {"init_command": "PRAGMA journal_mode=WAL", "transaction_mode": "IMMEDIATE"}),
        ({"transaction_mode": "IMMEDIATE"}, {"init_command": "PRAGMA journal_mode=WAL"}),
        (
            {"transaction_mode": "immediate", "init_command": "PRAGMA synchronous = NORMAL"},
            {"init_command": "PRAGMA journal_mode=WAL"},
        ),
        (
            {"transaction_mode": "EXCLUSIVE", "init_command": "PRAGMA journal_mode=DELETE"},
            {"init_command": "PRAGMA journal_mode=WAL"},
        ),
        ({"init_command": "PRAGMA journal_mode=WAL"}, {"transaction_mode": "IMMEDIATE"}),
        (
            {"init_command": "pragma journal_mode = 'wal';", "transaction_mode": "DEFERRED"},
            {"transaction_mode": "IMMEDIATE"},
        ),
        ({"init_command": "PRAGMA journal_mode(WAL)", "transaction_mode": None},
         {"transaction_mode": "IMMEDIATE"}),
    ],
)  # fmt: skip
def test_w007_an_sqlite_that_blocks_its_writers(
    check: Check, database: Callable[..., None], options: dict[str, Any], missing: dict[str, str]
) -> None:
    database(OPTIONS=options)

    message = the_only(check(STORE="events"), "W007")

    assert message.msg == (
        f"AEVENTS['STORE'] is 'events', an SQLite database without {' and '.join(missing.values())}:"
        " whoever reads or writes beside a writer may fail with 'database is locked'."
    )
    assert message.hint == f"Write in DATABASES['events']: 'OPTIONS': {missing!r}."
    # And what it says is the mend
    database(OPTIONS={**options, **missing})
    assert check(STORE="events") == []


def test_w007_is_of_sqlite_in_files_only_and_of_the_store(
    check: Check, database: Callable[..., None], settings: Any
) -> None:
    database()
    assert check(STORE=None) == []
    assert check(STORE="other") == []
    for engine in ("django.db.backends.postgresql", "django.db.backends.mysql"):
        database(engine)
        assert check(STORE="events") == []
    for name in (":memory:", "file:memorydb_events?mode=memory&cache=shared"):
        database(NAME=name)
        assert check(STORE="events") == []
    database("django.contrib.gis.db.backends.spatialite")
    the_only(check(STORE="events"), "W007")


@pytest.mark.parametrize("value", [None, "http", {"http": "x"}, {"http": None}, [("http", {})]])
def test_e003_transports_of_the_wrong_kind_are_named_and_not_shown(check: Check, value: Any) -> None:
    message = the_only(check(TRANSPORTS=value), "E003")
    assert "AEVENTS['TRANSPORTS']" in message.msg
    assert message.hint == "It must be a dict of dicts, by URL scheme."

    message = the_only(check(TRANSPORTS={"http": ["s3cret"]}), "E003")
    assert "s3cret" not in str(message)


@pytest.mark.parametrize("value", [0, -1, True, "5", None, float("nan")])
def test_e003_a_limit_that_is_no_number(check: Check, value: Any) -> None:
    message = the_only(check(LIMITS={"TRIES": value}), "E003")
    assert message.msg == f"AEVENTS['LIMITS']['TRIES'] is {value!r}."
    assert message.hint == "It must be a number above 0."


@pytest.mark.parametrize("value", [None, 5, ["CALL_S"]])
def test_e003_limits_of_the_wrong_kind(check: Check, value: Any) -> None:
    message = the_only(check(LIMITS=value), "E003")
    assert "AEVENTS['LIMITS'] is a " in message.msg


@pytest.mark.parametrize("key", ["SERVICES", "SUBSCRIPTIONS"])
@pytest.mark.parametrize("value", [None, 5, ["payments"], f"{__name__}.NOT_A_MAP"])
def test_e003_a_map_that_is_none(check: Check, key: str, value: Any) -> None:
    message = the_only(check(**{key: value}), "E003")
    assert f"AEVENTS[{key!r}] is a " in message.msg
    assert message.hint == "It must be a dict or the dotted path of one."


@pytest.mark.parametrize("key", ["SERVICES", "SUBSCRIPTIONS"])
@pytest.mark.parametrize("path", ["nowhere.events.MAP", f"{__name__}.NOTHING", "undotted"])
def test_e004_a_path_that_leads_nowhere(check: Check, key: str, path: str) -> None:
    message = the_only(check(**{key: path}), "E004")
    assert message.msg.startswith(f"AEVENTS[{key!r}] is {path!r}, which cannot be imported: ")
    assert message.hint == "Give the dotted path of a dict."


def test_e004_a_module_that_cannot_be_imported(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_devops.py").write_text("SERVICES = {\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = the_only(check(SERVICES="broken_devops.SERVICES"), "E004")
    assert "'broken_devops.SERVICES', which cannot be imported: " in message.msg


@pytest.mark.parametrize("entry", [None, 7, {}, {"URL": None}, ["https://payments/"]])
def test_e005_a_service_without_url(check: Check, entry: Any) -> None:
    message = the_only(check(SERVICES={**SERVICES, "payments": entry}), "E005")
    assert message.msg == "AEVENTS['SERVICES']['payments'] has no URL."
    assert message.hint == "Write the URL, or a dict with 'URL'."


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("payments.internal/events/", "(no scheme): no transport for the scheme ''"),
        ("", "(no scheme): no transport for the scheme ''"),
        (
            "ftp://me:s3cret@payments/",
            "(ftp): no transport for the scheme 'ftp' (there are: amqp, amqps, http,",
        ),
        ("http://", "(http): it has no host."),
        ("http://me:s3cret@/events/", "(http): it is no URL"),
        ("http://me:s3cret@[::1/", "(no scheme): "),
        ("http://me:s3cret@payments:port/", "(http): it is no URL"),
        ("http://me:s3cret/x@payments/", "(http): it is no URL"),
        ("memory://", "(memory): it must be memory://name"),
        ("local://payments", "(local): it must be local:// and nothing more"),
    ],
)
def test_e005_a_url_that_cannot_be_used(check: Check, url: str, reason: str) -> None:
    message = the_only(check(SERVICES={**SERVICES, "payments": {"URL": url}}), "E005")
    assert "AEVENTS['SERVICES']['payments'] has a URL that cannot be used " in message.msg
    assert reason in message.msg
    assert message.hint == "Write it as https://host/events/."
    assert "s3cret" not in str(message)


def test_e006_an_event_type_that_cannot_be_one(check: Check) -> None:
    for event_type in ("", "x" * 201, "two\nlines", 7, None):
        message = the_only(check(SUBSCRIPTIONS={event_type: ["orders"]}), "E006")
        assert f"AEVENTS['SUBSCRIPTIONS'][{event_type!r}]" in message.msg


@pytest.mark.parametrize("names", ["orders", None, 7, [7], ["orders", None]])
def test_e006_names_that_are_no_list(check: Check, names: Any) -> None:
    message = the_only(check(SUBSCRIPTIONS={"user-created": names}), "E006")
    assert message.msg == f"AEVENTS['SUBSCRIPTIONS']['user-created'] is {names!r}."
    assert message.hint == "It must be a list of names of SERVICES or BROKERS."


def test_e007_a_service_that_nobody_knows(check: Check) -> None:
    message = the_only(check(SUBSCRIPTIONS={"user-created": ["payment", "orders"]}), "E007")
    assert (
        message.msg == "AEVENTS['SUBSCRIPTIONS']['user-created'] names 'payment',"
        " which is neither in SERVICES nor in BROKERS."
    )
    assert message.hint == "Did you mean 'payments'?"

    message = the_only(check(SUBSCRIPTIONS={"user-created": ["xyz"]}), "E007")
    assert message.hint == "There are: accounts, orders, payments."


# Never a secret, never a crash


@pytest.mark.parametrize(
    "keys",
    [
        {"SERVICES": "https://me:s3cret@payments/events/"},
        {"SUBSCRIPTIONS": "https://me:s3cret@payments/events/"},
        {"SERVICES": "https://me:s3cret.x@payments/events/"},
        {"SUBSCRIPTIONS": {"x": "https://me:s3cret@payments/"}},
        {"SUBSCRIPTIONS": {"x": ["https://me:s3cret@payments/"]}},
        {"SUBSCRIPTIONS": {"x": ["https://me:s3cret/x@payments/"]}},
        {"SERVICES": {"x": {"https://me:s3cret@payments/": 1}}},
        {"SERVICES": {"https://me:s3cret@payments/": 1}},
        {"SERVICE": ["https://me:s3cret@payments/"]},
        {"https://me:s3cret@payments/": 1},
        {"LIMITS": {"TRIES": "https://me:s3cret@payments/"}},
    ],
    ids=str,
)
def test_a_url_s_password_is_never_shown_wherever_it_was_put(check: Check, keys: dict[str, Any]) -> None:
    messages = check(keys)
    assert messages
    for message in messages:
        assert "s3cret" not in f"{message.msg} {message.hint}"


STRANGE: list[Any] = [
    None,
    0,
    7,
    True,
    "",
    "x",
    b"x",
    [],
    ["x"],
    (),
    {},
    {"x": None},
    {7: 7},
    {None: {}},
    {("a", 1): {"URL": "https://x/"}, "b": "https://b/"},
    {"x": {"URL": 7}},
    {"x": {"BACKEND": "nowhere.X"}},
    {"x": [["y"]]},
    {"x": float("inf")},
    object(),
    ModuleType,
]


@pytest.mark.parametrize("key", sorted(KEYS))
def test_whatever_stands_in_the_settings_the_check_answers(check: Check, key: str) -> None:
    for value in STRANGE:
        for message in check(**{key: value}):
            assert isinstance(message, CheckMessage)


def test_every_key_and_limit_is_named_in_upper_case() -> None:
    assert all(key.isupper() for key in KEYS | LIMIT_KEYS)


def test_manage_py_check_fails_with_the_message_and_says_nothing_when_all_is_well(tmp_path: Path) -> None:
    def run(aevents: str) -> subprocess.CompletedProcess[str]:
        code = (
            "import django; from django.conf import settings;"
            "from django.core.management import call_command;"
            f"settings.configure(INSTALLED_APPS=['aevents'], AEVENTS={aevents}); django.setup();"
            "call_command('check')"
        )
        root = str(Path(__file__).parents[1])
        return subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=False
        )

    failed = run("{'SERVICE': 'a', 'UNSIGNED': 'accept', 'DISCOVERY': {}}")
    assert failed.returncode != 0
    assert "(aevents.E002) AEVENTS has an unknown key 'DISCOVERY'" in failed.stderr

    for mistake, number in (("'OUTBOX': True", "E008"), ("'SCHEDULE': [9**9]", "W006")):
        told = run(f"{{'SERVICE': 'a', 'UNSIGNED': 'accept', {mistake}}}")
        assert f"(aevents.{number}) AEVENTS[" in told.stderr

    good = run("{'SERVICE': 'a', 'UNSIGNED': 'accept', 'STORE': None}")
    assert good.returncode == 0, good.stderr
    assert "no issues" in good.stdout
