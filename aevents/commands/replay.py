"""`replay`: what is dead, or done, is owed again."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from aevents import upkeep
from aevents.commands import selection
from aevents.commands.base import Terminal, Verb
from aevents.tables import DEAD, DONE


class Replay(Verb):
    name = "replay"
    help = "Let dead deliveries be tried again, with their ids; with --done those in the history."

    def add_arguments(self, parser: ArgumentParser) -> None:
        selection.add_arguments(parser, self.name)
        parser.add_argument("--dead", action="store_true", help="the dead ones (this is what it does anyway)")
        parser.add_argument("--done", action="store_true", help="the done ones, from the history")
        parser.add_argument(
            "--again",
            action="store_true",
            help="as copies with new ids: a receiver drops an id that it had before",
        )

    def run(self, terminal: Terminal, options: Mapping[str, Any]) -> int:
        states = {state for state, name in ((DEAD, "dead"), (DONE, "done")) if options[name]} or {DEAD}
        verb, words = upkeep.replay, ("Replayed", "replay")
        if options["again"]:
            verb, words = upkeep.replay_again, ("Replayed, with new ids,", "replay, with new ids,")
        selection.carry_out(
            terminal, selection.chosen(options, states), verb, words, is_dry=options["dry_run"]
        )
        return 0
