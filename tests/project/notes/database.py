"""The SQLite file of a service under test, made and looked into from outside of it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path


def make(path: Path) -> Path:
    """Make the file with the one table of `tests.project`; return its path.

    In WAL mode, so that its companion file tells whether any connection to it is open.
    """
    _run(path, "CREATE TABLE project_note (id integer PRIMARY KEY AUTOINCREMENT, text varchar(100) NOT NULL)")
    _run(path, "PRAGMA journal_mode=WAL")
    return path


def texts(path: Path) -> list[str]:
    """Return the notes' texts, sorted."""
    return sorted(text for (text,) in _run(path, "SELECT text FROM project_note"))


def write(path: Path, text: str) -> None:
    """Add a note."""
    _run(path, "INSERT INTO project_note (text) VALUES (?)", text)


def clear(path: Path) -> None:
    """Remove all notes."""
    _run(path, "DELETE FROM project_note")


def is_open(path: Path) -> bool:
    """Tell whether anybody has the file open: the last one who closes it removes its companion."""
    return path.with_name(f"{path.name}-wal").exists()


def _run(path: Path, statement: str, *parameters: str) -> list[tuple[str]]:
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection, connection:
        return connection.execute(statement, parameters).fetchall()
