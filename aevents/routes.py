"""Who is told: an event type in, the destinations out, by the devops mapping `SUBSCRIPTIONS`."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings as django_settings
from django.utils.module_loading import import_string

from aevents import cloudevents, keyring, subscriptions
from aevents.errors import Refused
from aevents.event import pattern
from aevents.keyring import Keyring
from aevents.settings import Settings, conf
from aevents.transports import scheme_of, tls, transport_class
from aevents.transports.base import Destination

_CACHED_TYPES = 4096
_ALIKE = 0.85
_logger = logging.getLogger("aevents")


@dataclass(frozen=True)
class Table:
    """The mapping, compiled: every service and broker with its destination, every pattern with its names."""

    settings: Settings
    destinations: Mapping[str, Destination]
    exact: Mapping[str, tuple[str, ...]]
    patterns: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]
    keyring: Keyring
    senders: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]
    mistakes: tuple[str, ...]  # for which nothing that arrives may be believed
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


def destination_named(name: str) -> Destination | None:
    """Return the service or broker of that name, or None where the settings know none."""
    return _current().destinations.get(name)


def places() -> tuple[Destination, ...]:
    """Return where this service is to listen: `LISTEN`, brokers by their names and addresses by themselves."""
    table = _current()
    return tuple(
        Destination(text, text) if "://" in text else table.destinations.get(text) or Destination.unknown(text)
        for text in dict.fromkeys(_names(table.settings.LISTEN))
    )


def keys() -> Keyring:
    """Return the keys that sign and verify what this service sends and takes."""
    return _current().keyring


def mistakes() -> tuple[str, ...]:
    """Say what is so wrong in the settings that nothing may be taken in before it is mended."""
    return _current().mistakes


def mistakes_in_secrets() -> tuple[str, ...]:
    """Say which secrets are none; nothing where the mapping cannot be read, which the checks say."""
    try:
        return _current().keyring.mistakes
    except Exception:
        return ()


def are_senders_limited() -> bool:
    """Tell whether `SENDERS` names anybody."""
    return bool(_current().senders)


def may_send(event_type: str, signer: str | None) -> bool:
    """Tell whether `SENDERS` lets `signer` (None: nobody signed) send events of this type here."""
    named = [names for expression, names in _current().senders if expression.fullmatch(event_type)]
    return not named or any(signer in names for names in named if signer)


def goes_by_outbox(event_type: str) -> bool:
    """Tell whether events of this type are stored before they are sent: `OUTBOX`."""
    wanted = conf().OUTBOX
    if isinstance(wanted, bool):
        return wanted
    return any(pattern(text).fullmatch(event_type) for text in _names(wanted))


def resolve(value: Any) -> Any:
    """Return the object that a dotted path names, or the value itself."""
    return import_string(value) if isinstance(value, str) else value


def url_of(service: Any) -> str:
    """Return the URL of a `SERVICES` entry: a string, or a dict with `URL`."""
    # One without fails when it is used: it must not keep events from the other services.
    return str(service.get("URL") if isinstance(service, Mapping) else service)


def _current() -> Table:
    global _table
    settings = conf()
    if _table is None or _table.settings is not settings:
        _table = _compile(settings)
    return _table


def _compile(settings: Settings) -> Table:
    services, brokers = resolve(settings.SERVICES), resolve(settings.BROKERS)
    mapping = resolve(settings.SUBSCRIPTIONS)
    ring = keyring.read(settings.SECRETS, services, settings.SERVICE)
    destinations = {
        name: _destination(key, name, entry, ring)
        for key, entries in (("BROKERS", brokers), ("SERVICES", services))
        for name, entry in entries.items()
    }
    if settings.SERVICE:
        destinations[settings.SERVICE] = Destination(settings.SERVICE, "local://")
    exact: dict[str, tuple[str, ...]] = {}
    patterns: list[tuple[re.Pattern[str], tuple[str, ...]]] = []
    for event_type, names in mapping.items():
        if "*" in event_type:
            patterns.append((pattern(event_type), _names(names)))
        else:
            exact[event_type] = _names(names)
    mistakes = list(ring.mistakes)
    try:
        senders = tuple((pattern(text), _names(names)) for text, names in settings.SENDERS.items())
    except (AttributeError, TypeError):  # taken for none, it would let everybody send everything
        senders = ()
        mistakes.append("AEVENTS['SENDERS'] must be a dict of lists of services' names")
    return Table(settings, destinations, exact, tuple(patterns), ring, senders, tuple(mistakes))


def _destination(key: str, name: str, entry: Any, ring: Keyring) -> Destination:
    url, options = url_of(entry), entry if isinstance(entry, Mapping) else {}
    try:
        ca, cert = tls.files_of(options.get("CA"), options.get("CERT"))
        mistake = tls.misplaced_at(url) if ca or cert else None
    except ValueError as error:
        ca, cert, mistake = "", (), str(error)
    form = options.get("FORMAT", "")
    if form not in ("", cloudevents.FORMAT):
        mistake = mistake or f"'FORMAT' is {form!r:.60}, not {cloudevents.FORMAT!r}"
    return Destination(
        name,
        url,
        ring.signing_for(name),
        str(form),
        ca,
        cert,
        "; ".join(ring.mistakes)
        or (f"AEVENTS[{key!r}][{name!r}]: {mistake}" if mistake else too_open(name, url, options)),
    )


def too_open(name: str, url: str, options: Mapping[str, Any]) -> str:
    """Say why nothing may be sent to `url` as it is; empty where it may. What a broker is told, it may know."""
    if django_settings.DEBUG or options.get("PLAIN") is True:
        return ""
    scheme = scheme_of(url)
    try:
        is_open = transport_class(scheme).is_open_to_others(url)
    except (Refused, ValueError):  # which it fails with when it is used
        return ""
    if not is_open:
        return ""
    return (
        f"the URL of {name!r} is {scheme}:// to another host, which everybody on the way can read: write"
        f" {scheme}s://, or say AEVENTS['SERVICES'][{name!r}]['PLAIN'] = True where the network itself encrypts"
    )


def _names(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _match(table: Table, event_type: str) -> tuple[Destination, ...]:
    names = dict.fromkeys(table.exact.get(event_type, ()))
    for expression, more in table.patterns:
        if expression.fullmatch(event_type):
            names.update(dict.fromkeys(more))
    # A name nobody knows still owes a delivery: it fails aloud rather than vanish.
    return tuple(table.destinations.get(name) or Destination.unknown(name) for name in names)


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
