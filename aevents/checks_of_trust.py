"""System checks of who is believed and what others can read: the settings in, (id, message, mend) out.

What they find and is unsafe is refused at run time too, as servers run no checks: `routes` does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from django.conf import settings as django_settings

from aevents import cloudevents, keyring, routes
from aevents.event import is_event_type
from aevents.transports import scheme_of


class Finding(NamedTuple):
    """The number of a check, what it found, and how to mend it."""

    number: str
    text: str
    mend: str


def secrets(raw: Mapping[str, Any], services: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with secrets, and with who may send what; never the text of a secret."""
    ring = keyring.read(raw.get("SECRETS", ()), services, str(raw.get("SERVICE", "")))
    for mistake in ring.mistakes:
        yield Finding("E010", f"{mistake}.", "Make one with `manage.py aevents secret`.")
    senders = raw.get("SENDERS", {})
    if not isinstance(senders, Mapping):
        kind = type(senders).__name__
        yield Finding("E011", f"AEVENTS['SENDERS'] is a {kind}.", "It must be a dict of lists.")
        return
    for event_type, names in senders.items():
        where = f"AEVENTS['SENDERS'][{event_type!r}]"
        if not is_event_type(event_type) or not isinstance(names, (list, tuple, set, frozenset)):
            yield Finding(
                "E011", f"{where} is {names!r}.", "Write an event type or pattern, and a list of services."
            )
            continue
        for name in names:
            # One's own events are believed, whatever the list says: it may be the same for all services.
            if name != raw.get("SERVICE") and not (isinstance(name, str) and name in ring.pairwise):
                yield Finding(
                    "E011",
                    f"{where} names {name!r}, which has no secrets of its own here:"
                    " nothing can be known to be from it.",
                    f"Give AEVENTS['SERVICES'][{name!r}] its SECRETS.",
                )


def form(name: str, options: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with a service's `FORMAT` and `PLAIN`."""
    where = f"AEVENTS['SERVICES'][{name!r}]"
    if options.get("FORMAT", "") not in ("", cloudevents.FORMAT):
        yield Finding(
            "E003", f"{where}['FORMAT'] is {options['FORMAT']!r}.", f"It must be {cloudevents.FORMAT!r}."
        )
    if not isinstance(options.get("PLAIN", False), bool):
        yield Finding("E003", f"{where}['PLAIN'] is {options['PLAIN']!r}.", "It must be True or False.")


def has_keys(raw: Mapping[str, Any]) -> bool:
    """Tell whether anything that is signed can be verified."""
    return bool(keyring.read(raw.get("SECRETS", ()), _services(raw), ""))


def at_a_deploy(raw: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is fine while developing, and not where others can reach the services."""
    if not django_settings.DEBUG and not has_keys(raw):
        yield Finding(
            "W008",
            "There is no secret and DEBUG is off: a receiver cannot tell who sent an event.",
            "Make one with `manage.py aevents secret`, and put it into AEVENTS['SECRETS'] of all services.",
        )
    for name, entry in _services(raw).items():
        options = entry if isinstance(entry, Mapping) else {}
        scheme = scheme_of(routes.url_of(entry))
        if name != raw.get("SERVICE") and routes.too_open(name, routes.url_of(entry), options):
            yield Finding(
                "W009",
                f"AEVENTS['SERVICES'][{name!r}] is {scheme}:// to another host: everybody on the way can read"
                " it, and outside DEBUG nothing is sent there.",
                f"Write {scheme}s://, or PLAIN = True where the network itself encrypts.",
            )


def _services(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        value = routes.resolve(raw.get("SERVICES", {}))
    except Exception:  # another check says it
        return {}
    return value if isinstance(value, Mapping) else {}
