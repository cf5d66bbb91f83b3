"""`discard`: what is dead, or owed, is given up for good."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from aevents import upkeep
from aevents.commands import selection
from aevents.commands.base import Terminal, Verb
from aevents.tables import DEAD, OWED, SUSPECT


class Discard(Verb):
    name = "discard"
    help = "Remove dead deliveries for good. What waits behind one for its key then goes on."

    def add_arguments(self, parser: ArgumentParser) -> None:
        selection.add_arguments(parser, self.name)
        parser.add_argument(
            "--owed",
            action="store_true",
            help="those too that would be tried still, and that nobody tries now",
        )

    def run(self, terminal: Terminal, options: Mapping[str, Any]) -> int:
        states = {DEAD, OWED, SUSPECT} if options["owed"] else {DEAD}
        rows = selection.chosen(options, states)
        selection.carry_out(
            terminal, rows, upkeep.discard, ("Discarded", "discard"), is_dry=options["dry_run"]
        )
        return 0
