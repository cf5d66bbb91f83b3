"""`manage.py aevents [verb]`: the verbs themselves are in `aevents.commands`."""

from __future__ import annotations

import sys
from argparse import SUPPRESS, ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from django.db import DatabaseError

from aevents import tables
from aevents.commands import OVERVIEW, VERBS
from aevents.commands.base import Terminal, no_store, unusable


class Command(BaseCommand):
    help = "See and change what is owed: events between services that are not delivered or handled yet."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", metavar="verb", title="verbs")
        for verb in VERBS.values():
            its_parser = verbs.add_parser(verb.name, help=verb.help, description=verb.help)
            verb.add_arguments(its_parser)
            self._add_common(its_parser)

    def _add_common(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--no-progress", action="store_true", help="show nothing that moves, on a terminal neither"
        )
        # Django's own, behind the verb too: where it is not given, what stands before the verb counts.
        for option in ("--settings", "--pythonpath"):
            parser.add_argument(option, default=SUPPRESS, help=SUPPRESS)
        for option in ("--traceback", "--no-color", "--force-color", "--skip-checks"):
            parser.add_argument(option, action="store_true", default=SUPPRESS, help=SUPPRESS)
        parser.add_argument("-v", "--verbosity", type=int, default=SUPPRESS, help=SUPPRESS)

    def get_check_kwargs(self, options: dict[str, Any]) -> Any:
        # From Django 6.1 on, checks that no database is named for ask all of them; and a database that is
        # down is what a worker waits for and `status` reports, not what either ends with a traceback for.
        kwargs: Any = super().get_check_kwargs(options)
        return {**kwargs, "databases": []}

    def handle(self, *args: Any, **options: Any) -> None:
        verb = VERBS.get(options.get("verb") or "", OVERVIEW)
        if verb.needs_store and (reason := tables.why_not()) is not None:
            raise no_store(reason)
        terminal = Terminal(self.stdout, may_be_live=not options.get("no_progress"))
        try:
            code = verb.run(terminal, options)
        except DatabaseError as error:
            raise unusable(error) from error
        finally:
            terminal.clear()
        if code:
            sys.exit(code)
