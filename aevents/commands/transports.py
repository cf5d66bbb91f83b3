"""`transports`: what each transport can do, and whether it is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aevents.commands.base import Terminal, Verb
from aevents.errors import Refused
from aevents.settings import conf
from aevents.transports import BUILT_IN, transport_class

#: Each column and the flag of `Transport` that it shows.
COLUMNS = {
    "listens": "can_listen",
    "ordered": "keeps_order",
    "persistent": "is_persistent",
    "deduplicates": "drops_duplicates",
    "replays": "can_replay",
    "groups": "has_groups",
    "wildcards": "has_wildcards",
}


class Transports(Verb):
    name = "transports"
    help = "Print what each transport can do, by the scheme of a URL, and what is missing to use it."
    needs_store = False

    def run(self, terminal: Terminal, options: Mapping[str, Any]) -> int:
        rows = [["scheme", *COLUMNS, "needs"]]
        rows += [_row(scheme) for scheme in sorted({*BUILT_IN, *conf().TRANSPORTS})]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            terminal.say(
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            )
        return 0


def _row(scheme: str) -> list[str]:
    try:
        transport = transport_class(scheme)
    except Refused as error:
        return [scheme, *("?" for _ in COLUMNS), str(error)]
    return [scheme, *("yes" if getattr(transport, flag) else "-" for flag in COLUMNS.values()), ""]
