"""The interface of a verb of `manage.py aevents`, and the terminal that it prints on."""

from __future__ import annotations

import abc
import shutil
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from django.core.management.base import CommandError, OutputWrapper
from django.db import DatabaseError

from aevents import outage, tables

T = TypeVar("T")
#: The exit code where the store cannot be used.
UNUSABLE = 2
_REFRESH_S = 0.2
_TRIES = 6
_MENDS = {
    tables.SWITCHED_OFF: "name a database there, as 'default'",
    "there is no database": "give AEVENTS['STORE'] an alias of DATABASES",
    "'aevents' is not in INSTALLED_APPS": "add it",
}


class Terminal:
    """Where a verb prints: `say` is its result; `show`, on a terminal only, what the next line replaces."""

    def __init__(self, stream: OutputWrapper, *, may_be_live: bool = True) -> None:
        self._stream = stream
        self.is_live = may_be_live and stream.isatty()
        self._shown_at = 0.0
        self._is_shown = False

    def say(self, line: str = "") -> None:
        """Print a line for good."""
        self.clear()
        self._stream.write(line)

    def show(self, line: str) -> None:
        """Show how it stands."""
        if self.is_live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r" + line[:width] + "\x1b[K", ending="")
            self._stream.flush()
            self._is_shown = True

    def progress(self, done: int, total: int) -> None:
        """Show how far long work is, not more often than one can read."""
        if time.monotonic() - self._shown_at >= _REFRESH_S:
            self._shown_at = time.monotonic()
            self.show(f"{done:,} of {max(done, total):,}")

    def clear(self) -> None:
        """Take away what is shown."""
        if self._is_shown:
            self._stream.write("\r\x1b[K", ending="")
            self._stream.flush()
            self._is_shown = False


class Verb(abc.ABC):
    """One verb. `run` does it and returns the exit code; what it cannot do it raises as `CommandError`.

    `run` may assume that there is a store with its tables; a database that fails meanwhile is told
    to the user for it, with the exit code `UNUSABLE`.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    needs_store: ClassVar[bool] = True

    def add_arguments(self, parser: ArgumentParser) -> None:  # noqa: B027 - most have some
        """Add the options of this verb."""

    @abc.abstractmethod
    def run(self, terminal: Terminal, options: Mapping[str, Any]) -> int:
        """Do it."""


def no_store(reason: str) -> CommandError:
    """Return what is said where the settings allow for no store."""
    mend = _MENDS.get(reason, "see AEVENTS['STORE']")
    return CommandError(f"There is no store: {reason}. To have one, {mend}.", returncode=UNUSABLE)


def unusable(error: DatabaseError) -> CommandError:
    """Return what is said where the store cannot be read or written."""
    return CommandError(f"The store cannot be used: {outage.explain(error)}", returncode=UNUSABLE)


def patiently(work: Callable[[], T]) -> T:
    """Do one bounded piece of long work, again where the database's trouble passes: a lock, a deadlock."""
    for attempt in range(_TRIES):
        try:
            return work()
        except DatabaseError as error:
            if attempt == _TRIES - 1 or not outage.passes(error):
                raise
            tables.connection().close()
            time.sleep(0.1 * 2**attempt)
    raise AssertionError


def each(steps: Iterator[tuple[int, int]], terminal: Terminal, total: int) -> int:
    """Go through the steps of long work and show how far it is; return how many rows were changed."""
    seen = changed = 0
    for given, done in steps:
        seen, changed = seen + given, changed + done
        terminal.progress(seen, total)
    terminal.clear()
    return changed


def many(count: int, one: str, more: str = "") -> str:
    """Return a count with its noun."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"
