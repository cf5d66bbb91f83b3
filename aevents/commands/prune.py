"""`prune`: what nobody needs any more goes now, all of it."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from django.core.management.base import CommandError

from aevents import upkeep
from aevents.commands.base import Terminal, Verb, each, many, patiently


class Prune(Verb):
    name = "prune"
    help = "Remove what is past HISTORY_DAYS and SEEN_DAYS at once; with --dead-days old dead deliveries too."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--dead-days", type=float, metavar="N", help="remove those that died N days ago or earlier"
        )

    def run(self, terminal: Terminal, options: Mapping[str, Any]) -> int:
        days = options["dead_days"]
        if days is not None:
            if not 0 <= days < 36500:
                raise CommandError("--dead-days must be a number of days, 0 or more.")
            rows = upkeep.dead_for(days)
            steps = upkeep.in_steps(rows, lambda pks: patiently(lambda: upkeep.discard(pks)))
            removed = each(steps, terminal, rows.count())
            terminal.say(f"Discarded {many(removed, 'dead delivery', 'dead deliveries')}.")
        rounds = 0
        while patiently(upkeep.tidy):
            rounds += 1
            terminal.show(f"Removed more than {rounds * upkeep.ROWS:,} rows")
        terminal.say("Nothing is left that nobody needs.")
        return 0
