"""The pytest plugin: the fixture `emitted`. Imports `aevents.testing` only when a test asks for it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from aevents.testing import Emitted


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Forget the test before, so that what this test's fixtures emit counts too, whatever their order."""
    recorder = sys.modules.get("aevents.recorder")
    if recorder is not None:
        recorder.clear()


@pytest.fixture
def emitted() -> Emitted:
    """What was emitted in this test: see `aevents.testing.Emitted`."""
    from aevents.testing import Emitted

    return Emitted()
