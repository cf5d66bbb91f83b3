"""`manage.py aevents` called in the process of a test."""

from __future__ import annotations

import contextlib
import io

from django.core.management import call_command


def aevents(*words: str) -> str:
    """Return what the command prints, whatever its exit code."""
    return _run(words)[1]


def exit_code(*words: str) -> int:
    """Return the exit code of the command."""
    return _run(words)[0]


def _run(words: tuple[str, ...]) -> tuple[int, str]:
    printed, code = io.StringIO(), 0
    try:
        call_command("aevents", *words, stdout=printed)
    except SystemExit as end:
        code = int(end.code or 0)
    with contextlib.closing(printed):
        return code, printed.getvalue()
