"""System checks of where events go and come from: services, brokers, mapping, `LISTEN` in; findings out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from aevents import checks_of_trust, routes
from aevents.checks_of_trust import Finding
from aevents.errors import Refused
from aevents.event import is_event_type
from aevents.transports import scheme_of, tls, transport_class

_KEYS = {
    "SERVICES": frozenset({"URL", "SECRETS", "FORMAT", "CA", "CERT", "PLAIN"}),
    "BROKERS": frozenset({"URL", "FORMAT", "CA", "CERT"}),
}
_EXAMPLES = {"SERVICES": "https://host/events/", "BROKERS": "redis://host:6379/0"}


def findings(raw: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with `SERVICES`, `BROKERS`, `SUBSCRIPTIONS` and `LISTEN`."""
    resolved: dict[str, Mapping[str, Any]] = {}
    for key in ("SERVICES", "BROKERS", "SUBSCRIPTIONS"):
        value = raw.get(key, {})
        is_url = isinstance(value, str) and "://" in value
        try:
            value = value if is_url else routes.resolve(value)
        except Exception as error:  # whatever importing a module can raise
            yield Finding(
                "E004",
                f"AEVENTS[{key!r}] is {value!r}, which cannot be imported: {error}",
                "Give the dotted path of a dict.",
            )
            return
        if not isinstance(value, Mapping):
            yield Finding(
                "E003",
                f"AEVENTS[{key!r}] is {'a URL' if is_url else _of(value)}.",
                "It must be a dict or the dotted path of one.",
            )
            return
        resolved[key] = value
    services, brokers, own = resolved["SERVICES"], resolved["BROKERS"], raw.get("SERVICE")
    if are_transports(raw):
        for name, entry in services.items():
            if name != own:
                yield from _place("SERVICES", name, entry)
        for name, entry in brokers.items():
            yield from _place("BROKERS", name, entry)
            if name in services or name == own:
                yield Finding(
                    "E012",
                    f"AEVENTS['BROKERS'][{name!r}] has the name of a service.",
                    "Events go to names: give the broker another one.",
                )
    yield from checks_of_trust.secrets(raw, services)
    known = {*services, *brokers, *([own] if isinstance(own, str) else [])}
    yield from _mapping(resolved["SUBSCRIPTIONS"], known)
    yield from _listen(raw, brokers)


def _place(key: str, name: str, entry: Any) -> Iterator[Finding]:
    where = f"AEVENTS[{key!r}][{name!r}]"
    if isinstance(entry, Mapping):
        for each in entry:
            if each not in _KEYS[key]:
                yield Finding("E002", f"{where} has an unknown key {each!r}.", did_you_mean(each, _KEYS[key]))
    url = entry.get("URL") if isinstance(entry, Mapping) else entry
    if not isinstance(url, str):
        yield Finding("E005", f"{where} has no URL.", "Write the URL, or a dict with 'URL'.")
        return
    mistake = _mistake_in(url, is_broker=key == "BROKERS")
    if mistake is not None:
        # The URL may hold a password: only its scheme is shown.
        yield Finding(
            "E005",
            f"{where} has a URL that cannot be used ({scheme_of(url) or 'no scheme'}): {mistake}.",
            f"Write it as {_EXAMPLES[key]}.",
        )
    options = entry if isinstance(entry, Mapping) else {}
    mistake = tls.mistake_in(options.get("CA"), options.get("CERT"), url)
    if mistake is not None:
        yield Finding("E009", f"{where}: {mistake}.", "Give paths of PEM files that this process may read.")
    yield from checks_of_trust.form(key, name, options)


def _mistake_in(url: str, *, is_broker: bool) -> str | None:
    try:
        transport = transport_class(scheme_of(url))
    except Refused as error:
        return str(error)
    mistake = transport.mistake_in(url)
    if mistake is None and is_broker and not transport.has_groups:
        return "it leads to one service and is no broker, so it belongs into SERVICES"
    return mistake


def _mapping(mapping: Mapping[str, Any], known: set[str]) -> Iterator[Finding]:
    for event_type, names in mapping.items():
        where = f"AEVENTS['SUBSCRIPTIONS'][{event_type!r}]"
        if not is_event_type(event_type):
            yield Finding(
                "E006",
                f"{where}: the event type is not a printable string of 1 to 200 characters.",
                "Rename it.",
            )
        if isinstance(names, str) or not _is_list_of_strings(names):
            yield Finding(
                "E006", f"{where} is {names!r}.", "It must be a list of names of SERVICES or BROKERS."
            )
            continue
        for name in names:
            if name not in known:
                yield Finding(
                    "E007",
                    f"{where} names {name!r}, which is neither in SERVICES nor in BROKERS.",
                    did_you_mean(name, known),
                )


def _listen(raw: Mapping[str, Any], brokers: Mapping[str, Any]) -> Iterator[Finding]:
    names = raw.get("LISTEN", ())
    if isinstance(names, str) or not _is_list_of_strings(names):
        yield Finding("E013", f"AEVENTS['LISTEN'] is {_of(names)}.", "It must be a list of names of BROKERS.")
        return
    for name in names:
        if "://" in name:
            mistake = _mistake_in(name, is_broker=False)
            if mistake is not None:
                text = f"AEVENTS['LISTEN'] has an address that cannot be used ({scheme_of(name)}): {mistake}."
                yield Finding("E013", text, "Write the name of a broker, or tcp://0.0.0.0:7000.")
        elif name not in brokers:
            text = f"AEVENTS['LISTEN'] names {name!r}, which is not in BROKERS."
            yield Finding("E013", text, did_you_mean(name, brokers))
    if names and not raw.get("SERVICE"):
        text = "AEVENTS['LISTEN'] is set and SERVICE is not: brokers keep what is for a service by its name."
        yield Finding("E013", text, "Set SERVICE to this service's own name.")


def are_transports(raw: Mapping[str, Any]) -> bool:
    """Tell whether `TRANSPORTS` is a dict of dicts."""
    value = raw.get("TRANSPORTS", {})
    return isinstance(value, Mapping) and all(isinstance(entry, Mapping) for entry in value.values())


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Return a hint to what was meant by a wrong name."""
    names = sorted(map(str, known))
    alike = difflib.get_close_matches(str(name), names, n=1)
    return f"Did you mean {alike[0]!r}?" if alike else f"There are: {', '.join(names) or 'none'}."


def _is_list_of_strings(value: Any) -> bool:
    try:
        return all(isinstance(item, str) for item in value)
    except TypeError:
        return False


def _of(value: object) -> str:
    return f"a {type(value).__name__}"
