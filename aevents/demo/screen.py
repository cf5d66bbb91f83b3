"""Shows facts as they come: in colour with a live last line on a terminal, else as plain lines."""

from __future__ import annotations

import io
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.padding import Padding
from rich.status import Status
from rich.table import Table
from rich.text import Text

from aevents.demo.facts import Fact

_SERVICES = {"accounts": "cyan", "orders": "yellow", "payments": "magenta"}
_OUTCOMES = {
    "delivered": "green",
    "duplicate": "dim",
    "emitted": "blue",
    "failed": "bold red",
    "handled": "green",
    "killed": "bold red",
    "parked": "yellow",
    "raised": "bold red",
    "retried": "yellow",
    "started": "green",
    "unhandled": "dim",
}
_COLUMNS = ("emitted", "delivered", "retried", "parked", "handled", "raised")
_DETAIL_COLUMN = 19
_TO_A_SERVICE = ("emitted", "delivered", "retried", "parked", "failed")


class Screen:
    """The terminal, or the pipe or file in its place."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # an arrow where the encoding has none
        self.is_live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._console = (
            Console(highlight=False)
            if self.is_live
            else Console(highlight=False, force_terminal=False, color_system=None, width=100)
        )
        self._status = Status("", console=self._console)
        self._began = time.time()
        self._scenes = 0
        self._counted: Counter[str] = Counter()

    def __enter__(self) -> Screen:
        if self.is_live:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()

    def title(self, text: str) -> None:
        """Announce a scene."""
        self._scenes += 1
        self._console.print()
        self._console.print(Text(f"{self._scenes}. {text}", style="bold"), soft_wrap=not self.is_live)

    def command(self, text: str) -> None:
        """Show what is done from outside, uncut, so that it can be copied."""
        self._console.print(Text(f"   $ {text}", style="dim"), soft_wrap=True)

    def fact(self, fact: Fact) -> None:
        """Show one fact: when, where, which event, who took it, how long it took, what became of it."""
        self._counted[fact.what] += 1
        row = Text.assemble(
            (f"{fact.at - self._began:7.3f}  ", "dim"),
            (f"{fact.service:<8}  ", _SERVICES.get(fact.service, "")),
            (f"{_what_went_where(fact):<38}", "bold" if fact.what == "answered" else ""),
            (" " * 9 if fact.ms is None else f"{fact.ms:6.1f} ms", "dim"),
            ("" if fact.what == "answered" else f"  {fact.what:<9}", _OUTCOMES.get(fact.what, "")),
        )
        detail = Text(fact.detail, "dim")
        if self.is_live and row.cell_len + 2 + detail.cell_len > self._console.width:
            self._print(row)
            row = Text(" " * _DETAIL_COLUMN)
        else:
            row.append("  ")
        row.append_text(detail)
        self._print(row)
        self._show_counts()

    def summary(self, facts: Iterable[Fact]) -> None:
        """Show a table: how often each thing happened in each service."""
        counts = Counter((fact.service, fact.what) for fact in facts)
        table = Table(show_footer=True)
        table.add_column("service", footer="all")
        for what in _COLUMNS:
            total = sum(counts[service, what] for service in _SERVICES)
            table.add_column(what, footer=str(total), justify="right", style=_OUTCOMES[what])
        for service, style in _SERVICES.items():
            table.add_row(Text(service, style), *(str(counts[service, what]) for what in _COLUMNS))
        self._console.print()
        self._console.print(Padding(table, (0, 0, 0, 3), expand=False))

    def progress(self, text: str) -> None:
        """Show how it stands, in the last line of a terminal."""
        self._status.update(Text(text, style="dim"))

    def say(self, text: str, style: str = "") -> None:
        """Show a sentence, or several lines."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _print(self, row: Text) -> None:
        row.rstrip()
        if self.is_live:
            self._console.print(row, no_wrap=True, overflow="ellipsis")
        else:
            self._console.print(row, soft_wrap=True)

    def _show_counts(self) -> None:
        counts = ", ".join(f"{self._counted[what]} {what}" for what in _COLUMNS)
        self.progress(counts)


def _what_went_where(fact: Fact) -> str:
    if fact.what == "answered":
        return fact.who
    arrow = "→ " if fact.what in _TO_A_SERVICE and fact.who else ""
    return f"{fact.event:<16}  {arrow}{fact.who}"
