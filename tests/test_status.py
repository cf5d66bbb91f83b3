"""`manage.py aevents status`, and without a verb: how the store stands, for people and monitors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections

from aevents import claims, subscribe_to, upkeep
from aevents import store as stores
from aevents.models import Delivery, State, StoredEvent
from aevents.store import Setback
from aevents.tables import IN, OUT
from tests.commanding import aevents, exit_code
from tests.test_store import an_event, store_one

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(autouse=True)
def _known(store: str, settings: Any) -> Iterator[None]:
    settings.AEVENTS = {**settings.AEVENTS, "SERVICES": {"payments": "http://x/", "orders": "http://y/"}}
    subscribe_to("user-created", lambda payload: None, name="welcome")
    yield
    connections[store].close()


def die(target: str = "payments", direction: int = OUT, error: str = "HTTP 410") -> None:
    store_one(target, direction=direction)
    (claimed,) = claims.claim(direction, target, 1)
    stores.set_back([Setback(claimed.lease, 1, 0, 0.0, error, is_dead=True)])


def stored_ago(store: str, seconds: float) -> None:
    for event in StoredEvent.objects.using(store).all():
        event.created_ms -= int(seconds * 1000)
        event.save(using=store)


def status(*words: str) -> Any:
    return json.loads(aevents("status", "--json", *words))


def test_nothing_owed_is_well() -> None:
    assert exit_code("status") == 0
    assert aevents("status") == "tests: nothing is owed.\nAll is well.\n"


def test_it_counts_each_service_and_handler(store: str, settings: Any) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "HISTORY_DAYS": 1}
    # Given
    die()
    die("welcome", IN, "ValueError: no")
    store_one("orders", "payments")
    store_one("payments", is_leased=True)
    store_one("payments", due_in_s=60)
    store_one("orders")
    stores.finish([claims.claim(OUT, "orders", 1)[0].lease])
    Delivery.objects.using(store).filter(target="orders", state=State.OWED).update(state=State.SUSPECT)
    # When
    found = status("--max-age=1000")
    # Then
    names = ("direction", "target", "owed", "due", "leased", "suspects", "dead", "done", "last_error")
    assert [tuple(target[name] for name in names) for target in found["targets"]] == [
        ("out", "orders", 1, 1, 0, 1, 0, 1, ""),
        ("out", "payments", 3, 1, 1, 0, 1, 0, "HTTP 410"),
        ("in", "welcome", 0, 0, 0, 0, 1, 0, "ValueError: no"),
    ]
    assert {name: found[name] for name in names[2:8]} == {
        "owed": 4, "due": 2, "leased": 1, "suspects": 1, "dead": 2, "done": 1,
    }  # fmt: skip
    assert (found["is_well"], found["problems"]) == (False, ["2 dead"])


def test_what_is_dead_is_one_for_the_monitor_and_is_told_with_its_error() -> None:
    die()

    assert exit_code("status") == 1
    assert "payments  1 dead" in aevents("status")
    assert "the last one died of: HTTP 410" in aevents("status")


@pytest.mark.parametrize(("max_age", "code"), [((), 1), (("--max-age", "500"), 0)])
def test_what_is_owed_for_too_long_is_one_for_the_monitor(
    store: str, max_age: tuple[str, ...], code: int
) -> None:
    store_one("payments", due_in_s=60)
    assert exit_code("status") == 0

    stored_ago(store, 400)

    assert exit_code("status", *max_age) == code
    assert 400 <= status(*max_age)["oldest_owed_s"] < 430


@pytest.mark.parametrize(("direction", "target"), [(OUT, "ledger"), (IN, "shop.gone"), (IN, "Welcome")])
def test_a_target_that_this_code_does_not_know_is_named(direction: int, target: str) -> None:
    store_one(target, direction=direction)

    assert exit_code("status") == 1
    assert f"unknown targets: {target}" in aevents("status")
    assert [each["target"] for each in status()["unknown"]] == [target]
    assert f"{target} is unknown here, 1 wait for it" in aevents()


def test_what_is_only_history_of_an_unknown_target_is_well(settings: Any) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "HISTORY_DAYS": 1}
    store_one("ledger")
    stores.finish([claims.claim(OUT, "ledger", 1)[0].lease])

    assert exit_code("status") == 0


def test_what_is_paused_is_named_with_the_way_out(store: str) -> None:
    store_one("payments")
    upkeep.pause(OUT, "payments")

    assert "paused for 0 s" in aevents("status")
    assert status()["paused"] == [{"direction": "out", "target": "payments"}]
    assert "`manage.py aevents resume payments` ends it" in aevents()


def test_without_a_verb_it_says_what_to_do_next(store: str) -> None:
    assert "There is nothing to do." in aevents()

    die()
    store_one("orders")
    stored_ago(store, 300)

    text = aevents()
    assert "1 dead: payments. The last one died of: HTTP 410." in text
    assert "`manage.py aevents replay --target payments`" in text
    assert "What is due is not tried: start `manage.py aevents worker`" in text


def test_a_database_that_is_down_is_two_and_one_line(settings: Any, store: str, tmp_path: Any) -> None:
    before = connections.settings[store]
    away = {**before, "HOST": "127.0.0.1", "PORT": "1"}  # where nobody listens
    if store == "sqlite":
        away = {**before, "NAME": str(tmp_path / "none" / "x")}
    connections.settings = {**connections.settings, "away": away}
    settings.AEVENTS = {**settings.AEVENTS, "STORE": "away"}
    try:
        with pytest.raises(CommandError, match=r"^The store cannot be used: [^\n]+$") as raised:
            call_command("aevents", "status")
        assert raised.value.returncode == 2
    finally:
        connections["away"].close()
        connections.settings = {k: v for k, v in connections.settings.items() if k != "away"}


@pytest.mark.parametrize("verb", [(), ("status",), ("worker",), ("replay", "--all")])
def test_without_tables_the_mend_is_named(settings: Any, verb: tuple[str, ...], tmp_path: Any) -> None:
    bare = {**connections.settings["default"], "NAME": str(tmp_path / "bare.sqlite3")}
    connections.settings = {**connections.settings, "bare": bare}
    settings.AEVENTS = {**settings.AEVENTS, "STORE": "bare"}
    try:
        with pytest.raises(CommandError, match=r"run `manage.py migrate aevents`") as raised:
            call_command("aevents", *verb)
        assert raised.value.returncode == 2
    finally:
        connections["bare"].close()
        connections.settings = {k: v for k, v in connections.settings.items() if k != "bare"}


@pytest.mark.parametrize("verb", [(), ("status",), ("worker",), ("erase", "x")])
@pytest.mark.parametrize(
    ("alias", "reason"), [(None, "AEVENTS['STORE'] is None"), ("nowhere", "there is no database")]
)
def test_without_a_store_the_mend_is_named(
    settings: Any, verb: tuple[str, ...], alias: str | None, reason: str
) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "STORE": alias}

    with pytest.raises(CommandError, match="There is no store") as raised:
        call_command("aevents", *verb)

    assert reason in str(raised.value)
    assert "To have one" in str(raised.value)
    assert raised.value.returncode == 2


def test_an_event_with_nothing_owed_is_not_counted(store: str) -> None:
    store_one(event=an_event())

    assert status()["targets"] == []
