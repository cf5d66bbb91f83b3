"""Waiting for the caller's transactions: an action in, done when every one of them has committed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper


class Pending:
    """An action that waits for the commit of every database of this thread in an atomic block.

    A rollback of any of them, to a savepoint too, drops it: Django forgets the hook then.
    """

    def __init__(self, action: Callable[[], None], open_connections: Sequence[BaseDatabaseWrapper]) -> None:
        self._action = action
        self._waits_for = open_connections
        self._left = len(open_connections)
        for connection in open_connections:
            # robust: an error here must not stop the hooks of others
            connection.on_commit(self, robust=True)

    def __call__(self) -> None:
        """Note one commit; after the last one, act."""
        self._left -= 1
        if self._left == 0:
            self._action()

    def still_counts(self) -> bool:
        """Tell whether it has acted, or may still: no transaction it waits for was rolled back."""
        waiting = sum(
            any(hook[1] is self for hook in connection.run_on_commit) for connection in self._waits_for
        )
        return self._left == 0 or waiting >= self._left


def open_connections() -> list[BaseDatabaseWrapper]:
    """Return this thread's connections that are inside an atomic block."""
    return [c for c in connections.all(initialized_only=True) if c.in_atomic_block]


def opened_by_code(open_connections: list[BaseDatabaseWrapper]) -> list[BaseDatabaseWrapper]:
    """Leave out those in no other atomic block than what Django's `TestCase` puts around a test."""
    return [
        connection
        for connection in open_connections
        if not all(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)
    ]
