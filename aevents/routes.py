"""Who is told: an event type in, the destinations out, by the devops mapping `SUBSCRIPTIONS`."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.utils.module_loading import import_string

from aevents import subscriptions
from aevents.settings import Settings, conf
from aevents.transports.base import Destination

_CACHED_TYPES = 4096
_ALIKE = 0.85
_logger = logging.getLogger("aevents")


@dataclass(frozen=True)
class Table:
    """The mapping, compiled: every name with its destination, every pattern with its names."""

    settings: Settings
    destinations: Mapping[str, Destination]
    exact: Mapping[str, tuple[str, ...]]
    patterns: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]
    found: dict[str, tuple[Destination, ...]] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)


_table: Table | None = None


def destinations_of(event_type: str) -> tuple[Destination, ...]:
    """Return who is told of `event_type`: the union of all matching patterns, each service once."""
    table = _current()
    found = table.found.get(event_type)
    if found is None:
        found = _match(table, event_type)
        if len(table.found) < _CACHED_TYPES:
            table.found[event_type] = found
        if not found:
            _warn_if_it_resembles(table, event_type)
    return found


def resolve(value: Any) -> Any:
    """Return the object that a dotted path names, or the value itself."""
    return import_string(value) if isinstance(value, str) else value


def url_of(service: Any) -> str:
    """Return the URL of a `SERVICES` entry: a string, or a dict with `URL`."""
    # One without fails when it is used: it must not keep events from the other services.
    return str(service.get("URL") if isinstance(service, Mapping) else service)


def pattern(text: str) -> re.Pattern[str]:
    """Return the expression of a pattern, in which `*` stands for any run of characters."""
    return re.compile(".*".join(re.escape(part) for part in text.split("*")), re.DOTALL)


def _current() -> Table:
    global _table
    settings = conf()
    if _table is None or _table.settings is not settings:
        _table = _compile(settings)
    return _table


def _compile(settings: Settings) -> Table:
    services, mapping = resolve(settings.SERVICES), resolve(settings.SUBSCRIPTIONS)
    destinations = {name: Destination(name, url_of(entry)) for name, entry in services.items()}
    if settings.SERVICE:
        destinations[settings.SERVICE] = Destination(settings.SERVICE, "local://")
    exact: dict[str, tuple[str, ...]] = {}
    patterns: list[tuple[re.Pattern[str], tuple[str, ...]]] = []
    for event_type, names in mapping.items():
        if "*" in event_type:
            patterns.append((pattern(event_type), _names(names)))
        else:
            exact[event_type] = _names(names)
    return Table(settings, destinations, exact, tuple(patterns))


def _names(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _match(table: Table, event_type: str) -> tuple[Destination, ...]:
    names = dict.fromkeys(table.exact.get(event_type, ()))
    for expression, more in table.patterns:
        if expression.fullmatch(event_type):
            names.update(dict.fromkeys(more))
    # A name nobody knows still owes a delivery: it fails aloud rather than vanish.
    return tuple(table.destinations.get(name) or Destination(name, "") for name in names)


def _warn_if_it_resembles(table: Table, event_type: str) -> None:
    if event_type in table.warned or len(table.warned) >= _CACHED_TYPES:
        return
    table.warned.add(event_type)
    known = {_plain(name): name for name in (*subscriptions.subscribed_types(), *table.exact)}
    alike = difflib.get_close_matches(_plain(event_type), known, n=1, cutoff=_ALIKE)
    if alike and known[alike[0]] != event_type:
        _logger.warning(
            "No service is subscribed to %r. Did you mean %r?",
            event_type,
            known[alike[0]],
            extra={"event_type": event_type},
        )


def _plain(event_type: str) -> str:
    return re.sub(r"[^a-z0-9]", "-", event_type.lower())
