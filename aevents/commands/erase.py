"""`erase`: the stored payload of one event goes, and what is owed of it."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from django.core.management.base import CommandError

from aevents import tables, upkeep
from aevents.commands.base import Terminal, Verb, many, patiently

_LOOK_EVERY_S = 0.25
_MARGIN_S = 5.0


class Erase(Verb):
    name = "erase"
    help = "Erase the stored payload of one event, wherever it is kept, and discard what is owed of it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("id", metavar="EVENT_ID")

    def run(self, terminal: Terminal, options: Mapping[str, Any]) -> int:
        event_id = options["id"]
        stored = tables.events().filter(event_id=event_id).count()
        if not stored:
            raise CommandError(f"Nothing is stored of {event_id}: what is done goes, unless HISTORY_DAYS.")
        discarded = patiently(lambda: upkeep.erase(event_id))
        # What is being tried goes on, and may fail: then it is owed again, until it is discarded too.
        ends = time.monotonic() + tables.lease_s() + _MARGIN_S
        while (is_tried := upkeep.is_being_tried(event_id)) and time.monotonic() < ends:
            terminal.show("The payload is erased; waiting for a try that is under way")
            time.sleep(_LOOK_EVERY_S)
        discarded += patiently(lambda: upkeep.erase(event_id))
        terminal.say(
            f"Erased {many(stored, 'payload')}; discarded {many(discarded, 'delivery', 'deliveries')}."
        )
        if is_tried:
            terminal.say("One is being tried still: run this again when it has ended.")
        return 0
