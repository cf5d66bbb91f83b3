"""Every test starts with no subscription, no memory of older events and an empty record."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aevents import recorder, subscriptions


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    before = subscriptions.unsubscribe_all()
    recorder.clear()
    yield
    subscriptions.restore(before)
    recorder.clear()


# These start servers and whole interpreters, which takes longer than all the rest together; what they
# show hangs on the system more than on the version of Django. tox runs them on the oldest pair, the
# newest pair and one between; everywhere else all the rest.
PROCESSES = {
    f"test_{name}.py"
    for name in ("cancellation", "demo", "docs", "exit", "forks", "load", "processes", "readme", "servers")
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in PROCESSES:
            item.add_marker("processes")
