"""Whatever is killed whenever: what was committed has each effect once, what was rolled back has none.

`tox -e crash` kills for minutes. AEVENTS_CRASH_SEED repeats the plan of a run (not the machine's timing);
AEVENTS_CRASH_EVENTS, AEVENTS_CRASH_KILLS and AEVENTS_CRASH_DATABASES say how much, and where.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests import crash_harness, databases
from tests.crash_harness import Plan

_DATABASES = os.environ.get("AEVENTS_CRASH_DATABASES", "sqlite,postgresql").split(",")


def _survives(kind: str, folder: Path, events: int, kills: int, backlog: int) -> None:
    seed = int(os.environ.get("AEVENTS_CRASH_SEED") or random.getrandbits(32))
    print(f"\nAEVENTS_CRASH_SEED={seed}", flush=True)
    try:
        verdict = crash_harness.run(Plan(kind, events, kills, seed, backlog=backlog), folder)
    except databases.Unavailable as error:
        (pytest.fail if databases.is_required(kind) else pytest.skip)(str(error))
    print(verdict, flush=True)
    assert not verdict.problems, "\n".join([str(verdict), *verdict.problems])


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_is_committed_has_each_effect_once_whoever_is_killed(kind: str, tmp_path: Path) -> None:
    _survives(kind, tmp_path, events=500, kills=20, backlog=300)


@pytest.mark.crash
@pytest.mark.parametrize("kind", _DATABASES)
def test_it_does_after_a_hundred_thousand_events_and_a_thousand_kills(kind: str, tmp_path: Path) -> None:
    events = int(os.environ.get("AEVENTS_CRASH_EVENTS", "100000"))
    kills = int(os.environ.get("AEVENTS_CRASH_KILLS", "1000"))
    _survives(kind, tmp_path, events, kills, backlog=2000)
