"""`pause` and `resume`: nothing stored is tried for a service or handler, until a person says so."""

from __future__ import annotations

import difflib
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from django.core.management.base import CommandError

from aevents import routes, status, subscriptions, tables, upkeep
from aevents.commands.base import Terminal, Verb
from aevents.commands.selection import directions_of
from aevents.settings import conf
from aevents.tables import IN, OUT

_KINDS = {OUT: "service", IN: "handler"}


class Pause(Verb):
    name = "pause"
    help = "Let nothing that is stored be tried for a service or a handler, until `resume`."

    def add_arguments(self, parser: ArgumentParser) -> None:
        _add_arguments(parser)

    def run(self, terminal: Terminal, options: Mapping[str, Any]) -> int:
        target = options["target"]
        direction = _direction(options, directions_of(target))
        is_new = upkeep.pause(direction, target)
        terminal.say(
            f"The {_KINDS[direction]} {target} is paused{'' if is_new else ' already'}:"
            f" `manage.py aevents resume {target}` ends it."
        )
        if not status.is_known(direction, target):
            terminal.say(f"This code knows no {_KINDS[direction]} of that name.")
        return 0


class Resume(Verb):
    name = "resume"
    help = "Let what is owed to a paused service or handler be tried again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        _add_arguments(parser)

    def run(self, terminal: Terminal, options: Mapping[str, Any]) -> int:
        target = options["target"]
        paused = set(tables.pauses().filter(target=target).values_list("direction", flat=True))
        direction = _direction(options, paused or directions_of(target))
        if upkeep.resume(direction, target):
            terminal.say(f"The {_KINDS[direction]} {target} is resumed.")
        else:
            terminal.say(f"The {_KINDS[direction]} {target} was not paused.")
        return 0


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="a service's name, or a handler's")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--out", action="store_true", help="the service, where a handler has that name too")
    which.add_argument("--in", action="store_true", help="the handler, where a service has that name too")


def _direction(options: Mapping[str, Any], found: set[int]) -> int:
    if options["out"] or options["in"]:
        return OUT if options["out"] else IN
    target = options["target"]
    if len(found) > 1:
        raise CommandError(f"A service and a handler are named {target}: say --out or --in.")
    if not found:
        raise CommandError(_unknown(target))
    return found.pop()


def _unknown(target: str) -> str:
    known = [*routes.resolve(conf().SERVICES), *subscriptions.handler_names()]
    alike = difflib.get_close_matches(target, known, n=1)
    text = f"No service and no handler is named {target}, here or in the store"
    if alike:
        return f"{text}. Did you mean {alike[0]}?"
    return f"{text}: say --out or --in if that is right."
