"""System checks of `AEVENTS`: the settings in, messages that name key, value and mend out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning
from django.db import connections

from aevents import checks_of_places, checks_of_trust, tables
from aevents.checks_of_places import are_transports, did_you_mean
from aevents.event import is_event_type
from aevents.loops import why_no_threads
from aevents.settings import KEYS, LIMIT_KEYS, conf, is_days, is_outbox, is_recording, is_schedule

_USERINFO = re.compile(r"://\S*@")
_IN_MEMORY = re.compile(r":memory:|mode=memory")
_WAL = re.compile(r"journal_mode\W+wal\b", re.IGNORECASE)
_UNSIGNED = (None, "accept", "warn", "refuse")


def check_settings(**_: Any) -> list[CheckMessage]:
    """Return what is wrong in `settings.AEVENTS`."""
    raw = getattr(django_settings, "AEVENTS", None)
    if raw is None:
        return [
            _warning(
                "W001",
                "AEVENTS is not set: no service is told of any event.",
                "Set AEVENTS in the settings.",
            )
        ]
    if not isinstance(raw, Mapping):
        return [_error("E001", f"AEVENTS must be a dict, not {_of(raw)}.", "Write AEVENTS = {...}.")]
    places = map(_message, checks_of_places.findings(raw))
    return [*_keys(raw), *_types(raw), *_limits(raw), *places, *_store(raw), *_process(raw)]


def check_deployment(**_: Any) -> list[CheckMessage]:
    """Return what is unsafe where others can reach the services: `manage.py check --deploy`."""
    raw = getattr(django_settings, "AEVENTS", None)
    return [*map(_message, checks_of_trust.at_a_deploy(raw))] if isinstance(raw, Mapping) else []


def _keys(raw: Mapping[str, Any]) -> Iterator[CheckMessage]:
    for key in raw:
        if key not in KEYS:
            yield _error("E002", f"AEVENTS has an unknown key {key!r}.", did_you_mean(key, KEYS))


def _types(raw: Mapping[str, Any]) -> Iterator[CheckMessage]:
    if not raw.get("SERVICE"):
        yield _warning(
            "W002",
            "AEVENTS['SERVICE'] is not set: receivers cannot say where events came from.",
            "Set it to this service's own name.",
        )
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "SERVICE": (
            lambda v: isinstance(v, str) and (v == "" or is_event_type(v)),
            "a printable string",
        ),
        "UNSIGNED": (lambda v: v in _UNSIGNED, "'accept', 'warn', 'refuse' or None"),
        "STORE": (lambda v: v is None or isinstance(v, str), "a database alias or None"),
        "OUTBOX": (
            lambda v: is_outbox(v) and (isinstance(v, bool) or all(map(is_event_type, v))),
            "True, False or a list of event types and patterns",
        ),
        "INBOX": (lambda v: isinstance(v, bool), "True or False"),
        "RELAY": (lambda v: isinstance(v, bool), "True or False"),
        "SCHEDULE": (is_schedule, "a list of numbers above 0, one at least"),
        "HISTORY_DAYS": (is_days, "a number, 0 or above"),
        "STRICT": (lambda v: v is None or isinstance(v, bool), "True, False or None"),
        "ENABLED": (lambda v: v is None or isinstance(v, bool), "True, False or None"),
        "AUTODISCOVER": (lambda v: isinstance(v, bool), "True or False"),
    }
    for key, (is_right, wanted) in rules.items():
        if key in raw and not is_right(raw[key]):
            yield _error("E003", f"AEVENTS[{key!r}] is {raw[key]!r}.", f"It must be {wanted}.")
    if not are_transports(raw):  # their options may hold a secret: they are not shown
        yield _error(
            "E003",
            f"AEVENTS['TRANSPORTS'] is {_of(raw['TRANSPORTS'])} of something else.",
            "It must be a dict of dicts, by URL scheme.",
        )
    alias = raw.get("STORE")
    if isinstance(alias, str) and alias not in connections.settings:
        yield _error(
            "E003",
            f"AEVENTS['STORE'] is {alias!r}, which is not in DATABASES.",
            "Name a database alias, or None.",
        )


def _limits(raw: Mapping[str, Any]) -> Iterator[CheckMessage]:
    limits = raw.get("LIMITS", {})
    if not isinstance(limits, Mapping):
        yield _error("E003", f"AEVENTS['LIMITS'] is {_of(limits)}.", "It must be a dict of numbers.")
        return
    for key, value in limits.items():
        if key not in LIMIT_KEYS:
            yield _error(
                "E002",
                f"AEVENTS['LIMITS'] has an unknown key {key!r}.",
                did_you_mean(key, LIMIT_KEYS),
            )
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            yield _error("E003", f"AEVENTS['LIMITS'][{key!r}] is {value!r}.", "It must be a number above 0.")


def _store(raw: Mapping[str, Any]) -> Iterator[CheckMessage]:
    schedule_days = 1.5 * sum(conf().SCHEDULE) / 86_400  # a wait is up to half as long again
    seen_days = conf().LIMITS.SEEN_DAYS
    if schedule_days >= seen_days:
        yield _warning(
            "W006",
            f"AEVENTS['SCHEDULE'] lasts up to {schedule_days:.1f} days and"
            f" LIMITS['SEEN_DAYS'] is {seen_days:g}: a duplicate may come when it is not known any more.",
            "Make SCHEDULE shorter, or SEEN_DAYS more.",
        )
    alias = conf().STORE
    if alias is not None and alias not in connections.settings:
        return  # said already
    reason = tables.why_not()
    for key in ("OUTBOX", "INBOX"):
        if reason is not None and raw.get(key):
            yield _error(
                "E008",
                f"AEVENTS[{key!r}] is on, but nothing can be stored: {reason}.",
                f"Let STORE name a database, or take {key} out.",
            )
    if alias is not None and reason is None:
        yield from _sqlite(alias, connections.settings[alias])


def _sqlite(alias: str, database: Mapping[str, Any]) -> Iterator[CheckMessage]:
    """Look at the settings only: no check may open the database."""
    is_sqlite = str(database.get("ENGINE")).rpartition(".")[2] in ("sqlite3", "spatialite")
    if not is_sqlite or _IN_MEMORY.search(str(database.get("NAME"))):
        return
    options = database.get("OPTIONS") or {}
    missing = {}
    if not _WAL.search(str(options.get("init_command"))):
        missing["init_command"] = "PRAGMA journal_mode=WAL"
    if str(options.get("transaction_mode")).upper() not in ("IMMEDIATE", "EXCLUSIVE"):
        missing["transaction_mode"] = "IMMEDIATE"
    if missing:
        yield _warning(
            "W007",
            f"AEVENTS['STORE'] is {alias!r}, an SQLite database without {' and '.join(missing.values())}:"
            " whoever reads or writes beside a writer may fail with 'database is locked'.",
            f"Write in DATABASES[{alias!r}]: 'OPTIONS': {missing!r}.",
        )


def _process(raw: Mapping[str, Any]) -> Iterator[CheckMessage]:
    reason = why_no_threads()
    if reason is not None:
        yield _warning("W003", f"No event can leave this process: {reason}.", "Run it with ordinary threads.")
    if not apps.is_installed("aevents"):
        yield _warning("W004", "'aevents' is not in INSTALLED_APPS.", "Add it.")
    # Test runners switch DEBUG off, which says nothing of the servers.
    is_refused = raw.get("UNSIGNED") is None and not django_settings.DEBUG and not is_recording()
    if is_refused and not checks_of_trust.has_keys(raw):
        yield _warning(
            "W005",
            "AEVENTS['UNSIGNED'] is not set and DEBUG is off, and there are no SECRETS:"
            " every event that arrives is refused.",
            "Set SECRETS, or UNSIGNED to 'accept' where only your own services can reach the endpoint.",
        )


def _of(value: object) -> str:
    return f"a {type(value).__name__}"


def _message(found: checks_of_trust.Finding) -> CheckMessage:
    make = _error if found.number.startswith("E") else _warning
    return make(found.number, found.text, found.mend)


def _error(number: str, message: str, hint: str) -> Error:
    return Error(_without_passwords(message), hint=_without_passwords(hint), id=f"aevents.{number}")


def _warning(number: str, message: str, hint: str) -> Warning:
    return Warning(_without_passwords(message), hint=_without_passwords(hint), id=f"aevents.{number}")


def _without_passwords(text: str) -> str:
    # A URL may have been written in any place, and its password may hold what ends one elsewhere.
    return _USERINFO.sub("://***@", text)
