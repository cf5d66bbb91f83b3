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
        ("service", "There are: AUTODISCOVER, ENABLED, LIMITS, "),
        # What a later version knows must not be thought to work in this one.
        *((key, "") for key in ("OUTBOX", "INBOX", "BROKERS", "LISTEN", "SECRETS", "SENDERS", "RELAY")),
        *((key, "") for key in ("DISCOVERY", "HISTORY_DAYS")),
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
    services = {**SERVICES, "orders": {"URL": "https://orders/", "SECRETS": ["whsec_s3cret"]}}
    message = the_only(check(SERVICES=services), "E002")
    assert message.msg == "AEVENTS['SERVICES']['orders'] has an unknown key 'SECRETS'."
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
        ("ftp://me:s3cret@payments/", "(ftp): no transport for the scheme 'ftp' (there are: http, https,"),
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
    assert message.hint == "It must be a list of names of SERVICES."


def test_e007_a_service_that_nobody_knows(check: Check) -> None:
    message = the_only(check(SUBSCRIPTIONS={"user-created": ["payment", "orders"]}), "E007")
    assert (
        message.msg == "AEVENTS['SUBSCRIPTIONS']['user-created'] names 'payment', which is not in SERVICES."
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

    failed = run("{'SERVICE': 'a', 'UNSIGNED': 'accept', 'OUTBOX': True}")
    assert failed.returncode != 0
    assert "(aevents.E002) AEVENTS has an unknown key 'OUTBOX'" in failed.stderr

    good = run("{'SERVICE': 'a', 'UNSIGNED': 'accept', 'STORE': None}")
    assert good.returncode == 0, good.stderr
    assert "no issues" in good.stdout
