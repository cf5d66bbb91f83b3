"""What a test sees of the store: its rows, its relay run by hand, and their end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from django.db import connections, transaction

from aevents import inbox, tables
from aevents.courier import courier
from aevents.keeper import keeper
from aevents.models import Delivery
from aevents.relay import relay
from tests.peers import eventually


class Ledger:
    """The store of one test, whose `alias` names the database."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def rows(self, **where: Any) -> list[Delivery]:
        """Return the deliveries, oldest first."""
        return list(Delivery.objects.using(self.alias).filter(**where).select_related("event").order_by("pk"))

    def row(self, **where: Any) -> Delivery:
        """Return the only delivery."""
        (row,) = self.rows(**where)
        return row

    def has(self, count: int, **where: Any) -> None:
        """Wait until so many deliveries are there."""
        eventually(lambda: len(self.rows(**where)) == count, what=f"{count} deliveries with {where}")

    def is_empty(self) -> None:
        """Wait until nothing is owed and no event is left."""
        eventually(
            lambda: not self.rows() and not tables.events().exists(), what=f"nothing left of {self.rows()}"
        )

    def make_due(self, **where: Any) -> None:
        """Let everything be due now, whose lease ends with that."""
        Delivery.objects.using(self.alias).filter(**where).update(due_ms=0)

    @contextlib.contextmanager
    def relaying(self) -> Iterator[None]:
        """Let this process relay meanwhile, as a worker does."""
        relay.is_worker, relay.is_stopped = True, False
        keeper.begin(at_once=True)
        try:
            yield
        finally:
            relay.is_worker = False

    def look(self) -> None:
        """Let the relay look now."""
        keeper.begin(at_once=True)

    def rolled_back(self) -> Any:
        """Return a block whose transaction is rolled back at its end."""
        return _rolled_back(self.alias)

    def close(self) -> None:
        """End the threads that this test has started."""
        inbox.end(2.0)
        courier.close(0.5)
        keeper.end(2.0)
        connections[self.alias].close()


@contextlib.contextmanager
def _rolled_back(alias: str) -> Iterator[None]:
    with transaction.atomic(using=alias):
        yield
        transaction.set_rollback(True, using=alias)
