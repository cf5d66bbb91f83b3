"""Every setting of aevents with its default, read live from `settings.AEVENTS`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from django.conf import settings as django_settings

#: Seconds between the tries of what is stored, each times a random 0.5 to 1.5: 16 tries in about 76 hours.
_HOUR_S = 3600.0
SCHEDULE_S = (1, 5, 30, 120, 600, 1800, _HOUR_S, 2 * _HOUR_S, 4 * _HOUR_S, 8 * _HOUR_S, *[12 * _HOUR_S] * 5)


@dataclass(frozen=True)
class Limits:
    """Bounds, each overridable in `AEVENTS["LIMITS"]`; sizes in bytes, times in seconds."""

    BODY_BYTES: int = 1024 * 1024  # a request's body, on arrival
    EVENT_BYTES: int = 256 * 1024  # an encoded payload, at emit
    NESTING: int = 64  # lists and objects inside each other
    CALL_S: float = 5.0  # what emit and aemit wait at the most
    TRIES: int = 3  # tries within a call, at the most
    CONNECT_S: float = 2.0  # one connection
    ATTEMPT_S: float = 10.0  # one try, from connecting to the answer's head
    IN_FLIGHT: int = 16  # requests under way to one destination
    BATCH: int = 256  # events in one request
    WAITING: int = 10_000  # events waiting for one destination
    WAITING_BYTES: int = 32 * 1024 * 1024  # memory of the events waiting in this process, in all
    EXIT_S: float = 5.0  # what the exit of the process waits for deliveries
    DRAIN_S: float = 20.0  # what the worker waits for when it is told to end
    ANSWER_S: float = 2.0  # what a receiver waits for its handlers before the store takes over
    HANDLERS: int = 256  # stored deliveries given to handlers of this process at one time: a full batch
    SEEN_DAYS: float = 14.0  # how long an arrival is remembered, with INBOX
    HANDLER_THREADS: int = 8  # threads for sync handlers
    REMEMBER_S: float = 600.0  # how long succeeded handlers of an event are remembered
    REMEMBER: int = 10_000  # how many, counted once for each event


@dataclass(frozen=True)
class Settings:
    """`settings.AEVENTS`, typed; `docs/settings.md` says what each key means."""

    SERVICE: str = ""
    SERVICES: Mapping[str, Any] | str = field(default_factory=dict, repr=False)
    BROKERS: Mapping[str, Any] | str = field(default_factory=dict, repr=False)
    SUBSCRIPTIONS: Mapping[str, Iterable[str]] | str = field(default_factory=dict)
    LISTEN: Iterable[str] = field(default=(), repr=False)  # an address may hold credentials
    SECRETS: Iterable[str] = field(default=(), repr=False)
    SENDERS: Mapping[str, Iterable[str]] = field(default_factory=dict)
    UNSIGNED: str | None = None
    STORE: str | None = "default"
    OUTBOX: bool | Iterable[str] = False
    INBOX: bool = False
    RELAY: bool = True
    SCHEDULE: Iterable[float] = SCHEDULE_S
    HISTORY_DAYS: float = 0
    STRICT: bool | None = None
    ENABLED: bool | None = None
    AUTODISCOVER: bool = True
    TRANSPORTS: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    LIMITS: Limits = field(default_factory=Limits)


KEYS = frozenset(f.name for f in fields(Settings))
LIMIT_KEYS = frozenset(f.name for f in fields(Limits))

# What Django has looked up lately: asking its settings object costs ten times as much, at each emit.
_looked_up: dict[str, Any] = object.__getattribute__(django_settings, "__dict__")
_read: tuple[object, Settings] = (object(), Settings())  # what stood there, and what we made of it


def conf() -> Settings:
    """Return the settings of this moment; what is wrong in them is the system checks' affair."""
    global _read
    if _looked_up.get("AEVENTS", _read) is not _read[0]:
        raw = getattr(django_settings, "AEVENTS", None)
        if raw is not _read[0]:
            _read = (raw, _parse(raw))
    return _read[1]


def under_test() -> bool:
    """Tell whether Django's test environment is set up (`manage.py test`, pytest-django)."""
    # Not `mail.outbox`: the locmem e-mail backend makes one in servers too. It is Django's own affair what
    # it keeps there: a version that keeps it elsewhere must break no server.
    state = getattr(sys.modules.get("django.test.utils"), "_TestState", None)
    return hasattr(state, "saved_data")


def is_recording() -> bool:
    """Tell whether events stay in the process, recorded: in tests, unless `ENABLED` is True."""
    return conf().ENABLED is None and under_test()


def is_strict() -> bool:
    """Tell whether a wrong call raises: where `STRICT` says so, else in tests."""
    strict = conf().STRICT
    return is_recording() if strict is None else bool(strict)


def _parse(raw: object) -> Settings:
    if not isinstance(raw, Mapping):
        return Settings()
    known = {key: raw[key] for key in raw if key in KEYS}
    limits = known.get("LIMITS", {})
    if isinstance(limits, Mapping):
        known["LIMITS"] = Limits(**{k: v for k, v in limits.items() if k in LIMIT_KEYS and _is_number(v)})
    elif not isinstance(limits, Limits):
        del known["LIMITS"]
    # Servers run no checks: what is needed to keep an event must be something that works.
    if not isinstance(known.get("STORE"), (str, type(None))):
        known["STORE"] = Settings.STORE if known["STORE"] else None
    if not is_schedule(known.get("SCHEDULE", SCHEDULE_S)):
        del known["SCHEDULE"]
    if not is_days(known.get("HISTORY_DAYS", 0)):
        del known["HISTORY_DAYS"]
    if not is_outbox(known.get("OUTBOX", False)):
        known["OUTBOX"] = bool(known["OUTBOX"])
    return Settings(**known)


def is_outbox(value: object) -> bool:
    """Tell whether it is a switch, or a list of texts."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(isinstance(text, str) for text in value)
    return isinstance(value, bool)


def is_schedule(value: object) -> bool:
    """Tell whether it is a list of seconds above 0, of one at least."""
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_number, value))


def is_days(value: object) -> bool:
    """Tell whether it is a number of days, which may be 0."""
    return _is_number(value) or (type(value) in (int, float) and value == 0)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
