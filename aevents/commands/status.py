"""`status`: how the store stands, for a person or a monitor."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from typing import Any

from aevents import status
from aevents.commands.base import Terminal, Verb
from aevents.status import Target, age

MAX_AGE_S = 300.0


class Status(Verb):
    name = "status"
    help = (
        "Say what is owed, dead, paused and unknown, for each service and handler. Exit code: 0 all is well,"
        " 1 something is dead or unknown or owed for too long, 2 the store cannot be read."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="the same as JSON")
        parser.add_argument(
            "--max-age",
            type=float,
            default=MAX_AGE_S,
            metavar="S",
            help="for how many seconds something may be owed before the exit code is 1 (default: 300)",
        )

    def run(self, terminal: Terminal, options: Mapping[str, Any]) -> int:
        found = status.read()
        problems = found.problems(options["max_age"])
        if options["json"]:
            terminal.say(json.dumps(found.as_dict(options["max_age"]), indent=2))
        else:
            for line in lines(found):
                terminal.say(line)
            terminal.say(f"Look at this: {'; '.join(problems)}." if problems else "All is well.")
        return 1 if problems else 0


def headline(found: status.Status) -> str:
    """Return the whole store in one line."""
    name = found.service or "This service"
    owed, dead = found.total("owed"), found.total("dead")
    if not owed and not dead:
        return f"{name}: nothing is owed."
    parts = [f"{owed:,} owed"]
    if owed:
        parts[0] += f", the oldest for {age(found.oldest_owed_s)}"
        parts.append(f"{found.total('due'):,} due now")
        parts.append(f"{found.total('leased'):,} being tried")
    if suspects := found.total("suspects"):
        parts.append(f"{suspects:,} suspected of ending their process")
    if dead:
        parts.append(f"{dead:,} dead")
    return f"{name}: {'; '.join(parts)}."


def lines(found: status.Status) -> Iterator[str]:
    """Yield the store in lines: the whole, then each service and handler."""
    yield headline(found)
    width = max((len(target.target) for target in found.targets), default=0)
    for direction, title in (("out", "To services"), ("in", "For handlers here")):
        targets = [target for target in found.targets if target.direction == direction]
        if targets:
            yield f"{title}:"
        for target in targets:
            yield f"  {target.target:<{width}}  {_counts(target)}"
            if target.last_error:
                yield f"  {'':<{width}}  the last one died of: {target.last_error}"


def _counts(target: Target) -> str:
    parts = []
    if target.owed:
        parts.append(f"{target.owed:,} owed (oldest {age(target.oldest_owed_s)}, {target.due:,} due now)")
    for name, word in (
        ("leased", "being tried"),
        ("suspects", "suspect"),
        ("dead", "dead"),
        ("done", "done"),
    ):
        if count := getattr(target, name):
            parts.append(f"{count:,} {word}")
    if target.paused_for_s is not None:
        parts.append(f"paused for {age(target.paused_for_s)}")
    if not target.is_known:
        parts.append(
            "unknown: not in AEVENTS['SERVICES']"
            if target.direction == "out"
            else "unknown: no handler here has that name"
        )
    return ", ".join(parts) or "nothing"
