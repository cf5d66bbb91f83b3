"""Every test starts with no subscription, no memory of older events and an empty record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aevents import recorder, subscriptions
from tests import databases
from tests.ledger import Ledger


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    before = subscriptions.unsubscribe_all()
    recorder.clear()
    yield
    subscriptions.restore(before)
    recorder.clear()


@pytest.fixture(scope="session")
def _databases_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("databases")
    databases.drop_all()


@pytest.fixture(params=databases.KINDS)
def store(
    request: pytest.FixtureRequest, _databases_folder: Path, django_db_blocker: Any, settings: Any
) -> Iterator[str]:
    """The alias of an empty, real database that `STORE` names, once on each kind of database.

    Nothing is wrapped in a transaction, and every thread may open its own connection. For one kind only:
    `@pytest.mark.parametrize("store", ["postgresql"], indirect=True)`. `databases.environment(store)`
    is for child processes.
    """
    with django_db_blocker.unblock():
        try:
            database = databases.get(request.param, _databases_folder)
        except databases.Unavailable as error:
            (pytest.fail if databases.is_required(request.param) else pytest.skip)(str(error))
        with database.attached() as alias:
            settings.AEVENTS = {**settings.AEVENTS, "STORE": alias}
            yield alias


@pytest.fixture
def ledger(store: str) -> Iterator[Ledger]:
    """The rows of `store`, and the relay run by hand; the threads that worked on it end with the test."""
    found = Ledger(store)
    yield found
    found.close()


# These start servers and whole interpreters, which takes longer than all the rest together; what they
# show hangs on the system more than on the version of Django. tox runs them on the oldest
# pair and the newest; everywhere else all the rest.
PROCESSES = {
    f"test_{name}.py"
    for name in (
        "bad_requests",
        "cancellation",
        "demo",
        "docs",
        "docs_of_brokers",
        "exit",
        "forks",
        "fuzz",  # which Django it is makes no difference to these three, which make up events by the thousand
        "interop",
        "load",
        "openapi",
        "processes",
        "readme",
        "rehearsal",
        "servers",
        "tls",
        "trust",
    )
}


# And these take minutes, and hang on the databases or on brokers: the newest pair runs them.
FAULTS = {
    f"test_{name}.py"
    for name in (
        "broker_crash",
        "crash",
        "faults",
        "kafka_transport",
        "listening",
        "moving",
        "nats_places",
        "nats_transport",
        "own_transport",
        "rabbitmq_transport",
        "redis_transport",
        "tcp_transport",
        "worker",
        "worker_outages",
    )
}

# These kill and restart brokers for minutes: `tox -e crash` runs them.
OUTAGES = {"test_kafka_outages.py", "test_nats_outages.py", "test_rabbitmq_faults.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        database = getattr(item, "callspec", None) and item.callspec.params.get("store")  # type: ignore[attr-defined]
        if item.path.name in OUTAGES:
            item.add_marker("crash")
        elif item.path.name in FAULTS:
            item.add_marker("faults")
        elif item.path.name in PROCESSES or database in ("postgresql", "mariadb"):
            item.add_marker("processes")
