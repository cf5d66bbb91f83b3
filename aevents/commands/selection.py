"""Which deliveries a verb is for: options in, a query and words for it out. For replay and discard."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError
from django.db.models import Count, Q, QuerySet
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from aevents import status, tables, upkeep
from aevents.commands.base import Terminal, each, many, patiently
from aevents.rows import NowMs
from aevents.tables import DEAD, DONE, EPOCH, IN, OUT, OWED, SUSPECT

if TYPE_CHECKING:
    from aevents.models import Delivery

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_FEW = 20
_STATES = {OWED: "owed", SUSPECT: "suspect", DEAD: "dead", DONE: "done"}


def add_arguments(parser: ArgumentParser, verb: str) -> None:
    """Add the options that choose deliveries."""
    parser.add_argument("ids", nargs="*", metavar="EVENT_ID", help=f"{verb} what is kept of these events")
    parser.add_argument("--type", help=f"{verb} events of this type; * stands for any characters")
    parser.add_argument("--target", help=f"{verb} what goes to this service, or to this handler")
    parser.add_argument(
        "--since", help=f"{verb} what has died (or was done) since then: 2h, 30min, 1d, or a time in ISO 8601"
    )
    parser.add_argument("--all", action="store_true", help=f"{verb} all, where nothing else chooses")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")


def chosen(options: Mapping[str, Any], states: set[int]) -> QuerySet[Delivery]:
    """Return the deliveries that the options choose; raises `CommandError` where they do not choose."""
    if not (options["ids"] or options["type"] or options["target"] or options["since"] or options["all"]):
        raise CommandError("Say which: by event ids, --type, --target or --since; or --all for all of them.")
    rows = tables.deliveries().filter(state__in=states)
    if options["ids"]:
        rows = rows.filter(event__event_id__in=_ids(options["ids"]))
    if options["type"]:
        rows = rows.filter(_type(options["type"]))
    if options["target"]:
        rows = rows.filter(target=options["target"])
    if options["since"]:
        rows = rows.filter(changed_ms__gte=_since(options["since"]))
    return rows


def carry_out(
    terminal: Terminal,
    rows: QuerySet[Delivery],
    verb: Callable[[list[int]], int],
    words: tuple[str, str],
    *,
    is_dry: bool,
) -> int:
    """Do it to all of the rows, or say what would be done; return how many were changed.

    `words`: what was done, and what would be.
    """
    done, do = words
    total = rows.count()
    if is_dry:
        terminal.say(f"Would {do} {many(total, 'delivery', 'deliveries')}{'.' if not total else ':'}")
        for line in _listed(rows, total):
            terminal.say(f"  {line}")
        return 0
    changed = each(upkeep.in_steps(rows, lambda pks: patiently(lambda: verb(pks))), terminal, total)
    text = f"{done} {many(changed, 'delivery', 'deliveries')}."
    if changed < total:
        left = total - changed
        text += (
            f" {left:,} {'was' if left == 1 else 'were'} left: being tried now, changed meanwhile, or erased."
        )
    terminal.say(text)
    return changed


def _ids(given: list[str]) -> list[str]:
    known = set(tables.events().filter(event_id__in=given).values_list("event_id", flat=True))
    missing = [event_id for event_id in given if event_id not in known]
    if missing:
        raise CommandError(
            f"Nothing is stored of {', '.join(missing)}: what is done goes, unless HISTORY_DAYS."
        )
    return given


def _type(text: str) -> Q:
    if "*" not in text:
        return Q(event__type=text)
    pattern = ".*".join(re.escape(part) for part in text.split("*"))
    return Q(event__type__regex=f"^{pattern}$")


def _since(text: str) -> Any:
    if span := _SPAN.fullmatch(text.strip()):
        return NowMs() - int(float(span[1]) * _SECONDS[span[2]] * 1000)
    try:
        moment = parse_datetime(text)
        if moment is None and (day := parse_date(text)):
            moment = parse_datetime(f"{day}T00:00:00")
    except ValueError:
        moment = None
    if moment is None:
        raise CommandError(f"--since {text!r} is no time: write 2h, 30min, 1d, or 2026-11-25T10:00:00+01:00.")
    if timezone.is_naive(moment):
        moment = timezone.make_aware(moment)
    return (moment - EPOCH) // timedelta(milliseconds=1)


def _listed(rows: QuerySet[Delivery], total: int) -> list[str]:
    """Return some lines on the rows: each of a few, else how many of each kind."""
    if total <= _FEW:
        fields = ("event__event_id", "event__type", "direction", "target", "state", "error")
        return [
            f"{event_id} {event_type} {_way(direction, target)} ({': '.join(filter(None, why))})"
            for event_id, event_type, direction, target, state, error in rows.order_by("pk").values_list(
                *fields
            )
            for why in [(_STATES[state], error)]
        ]
    kinds = rows.order_by().values_list("event__type", "direction", "target", "state")
    found = sorted(kinds.annotate(count=Count("pk")), key=lambda kind: -kind[-1])
    lines = [
        f"{count:,} {event_type} {_way(direction, target)} ({_STATES[state]})"
        for event_type, direction, target, state, count in found[:_FEW]
    ]
    return [*lines, f"and {len(found) - _FEW} more kinds"] if len(found) > _FEW else lines


def _way(direction: int, target: str) -> str:
    return f"to {target}" if direction == OUT else f"for {target}"


def directions_of(target: str) -> set[int]:
    """Return whether the name is a service's, a handler's or both: here, or in the store."""
    stored = set(tables.deliveries().filter(target=target).values_list("direction", flat=True).distinct())
    paused = set(tables.pauses().filter(target=target).values_list("direction", flat=True))
    return {d for d in (OUT, IN) if status.is_known(d, target)} | stored | paused
