"""`secret`: a new secret for `AEVENTS["SECRETS"]`, on a line of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aevents import signature
from aevents.commands.base import Terminal, Verb


class Secret(Verb):
    name = "secret"
    help = (
        "Print a new secret for AEVENTS['SECRETS'], and nothing else. Put it in front of the old one,"
        " and take that one away when every service has the new one."
    )
    needs_store = False

    def run(self, terminal: Terminal, options: Mapping[str, Any]) -> int:
        terminal.say(signature.new_secret())
        return 0
