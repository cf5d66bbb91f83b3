"""The verbs of `manage.py aevents` that change rows: each on what a person chooses, and on nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import CommandError
from django.db import OperationalError, connections

from aevents import claims, subscribe_to, tables, upkeep
from aevents import store as stores
from aevents.models import Delivery, Pause, Seen, State, StoredEvent
from aevents.store import Entry, Owed, Setback
from aevents.tables import IN, OUT
from tests.commanding import aevents
from tests.test_store import an_event, claim, deliveries, expire, store_one

pytestmark = pytest.mark.usefixtures("store")
HOUR_MS = 3600 * 1000


@pytest.fixture(autouse=True)
def _known(store: str, settings: Any) -> Iterator[None]:
    services = {"payments": "http://x/", "orders": "http://y/"}
    settings.AEVENTS = {**settings.AEVENTS, "SERVICES": services, "HISTORY_DAYS": 3}
    subscribe_to("user-created", lambda payload: None, name="welcome")
    yield
    connections[store].close()


def die(target: str = "payments", event_type: str = "user-created", direction: int = OUT, **more: Any) -> str:
    """Store an event that is dead for the target; return its id."""
    event = an_event(event_type, **more)
    store_one(target, direction=direction, event=event, is_dead=True, attempts=16, refusals=2, error="no")
    return event.id


def finish(target: str = "orders", event_type: str = "user-created") -> str:
    """Store an event that was delivered; return its id."""
    event = an_event(event_type)
    store_one(target, event=event)
    (claimed,) = claims.claim(OUT, target, 1)
    stores.finish([claimed.lease])
    return event.id


def states(store: str) -> list[State]:
    return [State(row.state) for row in deliveries(store)]


def ids_of(claimed: list[claims.Claimed]) -> list[str]:
    return [each.event.id for each in claimed]


# Replay


def test_a_replayed_delivery_is_as_a_new_one_and_keeps_its_id(store: str) -> None:
    event_id = die()

    assert aevents("replay", event_id) == "Replayed 1 delivery.\n"

    (row,) = deliveries(store)
    assert (row.state, row.attempts, row.refusals, row.losses, row.lease) == (State.OWED, 0, 0, 0, "")
    assert row.error == ""
    assert ids_of(claim("payments")) == [event_id]


def test_only_the_dead_are_replayed_unless_the_done_are_asked_for(store: str) -> None:
    die()
    finish()
    store_one("orders", due_in_s=60)

    aevents("replay", "--all")
    assert states(store) == [State.OWED, State.DONE, State.OWED]
    assert not claim("orders")

    aevents("replay", "--all", "--done")
    assert states(store) == [State.OWED, State.OWED, State.OWED]
    assert len(claim("orders")) == 1


@pytest.mark.parametrize(
    ("words", "replayed"),
    [
        (["--type", "user-created"], ["a", "b"]),
        (["--type", "user-*"], ["a", "b", "c"]),
        (["--type", "*"], ["a", "b", "c", "d"]),
        (["--type", "user.created"], []),
        (["--type", "User-created"], []),
        (["--target", "orders"], ["b"]),
        (["--target", "welcome"], ["d"]),
        (["--target", "Orders"], []),
        (["--type", "user-*", "--target", "payments"], ["a", "c"]),
        (["a", "d"], ["a", "d"]),
        (["a", "d", "--target", "payments"], ["a"]),
        (["--all"], ["a", "b", "c", "d"]),
    ],
)
def test_filters_narrow_each_other(store: str, words: list[str], replayed: list[str]) -> None:
    die(id="a")
    die("orders", id="b")
    die(event_type="user-renamed", id="c")
    die("welcome", "invoice-paid", IN, id="d")

    aevents("replay", *words)

    owed = Delivery.objects.using(store).filter(state=State.OWED)
    assert sorted(owed.values_list("event__event_id", flat=True)) == replayed


def test_since_is_a_span_or_a_moment(store: str) -> None:
    die(id="old")
    Delivery.objects.using(store).update(changed_ms=tables_now() - 3 * HOUR_MS)
    die(id="new")
    moment = datetime.now(UTC) - timedelta(hours=2)

    for since in ("2h", "120min", "7200s", moment.isoformat(), f"{moment:%Y-%m-%dT%H:%M:%SZ}"):
        assert "Would replay 1 delivery:" in aevents("replay", "--dry-run", f"--since={since}")
    assert "Would replay 2 deliveries:" in aevents("replay", "--dry-run", "--since=1d")
    assert "Would replay 2 deliveries:" in aevents("replay", "--dry-run", "--since=2026-01-01")
    assert aevents("replay", "--dry-run", "--since=2999-01-01T00:00") == "Would replay 0 deliveries.\n"


def tables_now() -> int:
    return int(time.time() * 1000)


@pytest.mark.parametrize("since", ["yesterday", "2", "2026-02-30", "2026-13-01T00:00"])
def test_a_since_that_is_no_time_is_refused_with_an_example(since: str) -> None:
    with pytest.raises(CommandError, match=r"is no time: write 2h, 30min"):
        aevents("replay", f"--since={since}")


@pytest.mark.parametrize("verb", ["replay", "discard"])
def test_nothing_is_done_where_nothing_was_chosen(store: str, verb: str) -> None:
    die()

    with pytest.raises(CommandError, match="Say which"):
        aevents(verb)

    assert states(store) == [State.DEAD]


@pytest.mark.parametrize("verb", ["replay", "discard", "erase"])
def test_an_id_that_is_not_stored_is_named(store: str, verb: str) -> None:
    event_id = die()

    with pytest.raises(CommandError, match="Nothing is stored of nobody"):
        aevents(verb, "nobody", *([] if verb == "erase" else [event_id]))

    assert states(store) == [State.DEAD]


@pytest.mark.parametrize(
    ("verb", "words"), [("replay", ["--again"]), ("replay", []), ("discard", ["--owed"])]
)
def test_a_dry_run_tells_and_changes_nothing(store: str, verb: str, words: list[str]) -> None:
    event_id = die()
    before = deliveries(store)[0].changed_ms

    printed = aevents(verb, "--all", "--dry-run", *words)

    assert f"{event_id} user-created to payments (dead: no)" in printed
    assert states(store) == [State.DEAD]
    assert deliveries(store)[0].changed_ms == before
    assert StoredEvent.objects.using(store).count() == 1


def test_a_dry_run_of_many_tells_how_many_of_each_kind() -> None:
    for _ in range(15):
        die()
        die("welcome", direction=IN)

    printed = aevents("replay", "--all", "--dry-run")

    assert "Would replay 30 deliveries:" in printed
    assert "15 user-created to payments (dead)" in printed
    assert "15 user-created for welcome (dead)" in printed


def test_again_stores_a_copy_with_a_new_id_in_the_place_of_the_dead(store: str) -> None:
    event = an_event(key="k", cause="c", correlation="d", hops=2)
    store_one("payments", event=event, is_dead=True)

    assert aevents("replay", "--all", "--again") == "Replayed, with new ids, 1 delivery.\n"

    (claimed,) = claim("payments")
    assert claimed.event.id != event.id
    assert claimed.event == an_event(id=claimed.event.id, key="k", cause="c", correlation="d", hops=2)
    assert StoredEvent.objects.using(store).count() == 1


def test_again_leaves_what_is_done_in_the_history(store: str) -> None:
    event_id = finish()

    aevents("replay", event_id, "--done", "--again")

    assert states(store) == [State.DONE, State.OWED]
    assert ids_of(claim("orders")) != [event_id]


def test_again_makes_one_new_event_for_all_targets_of_the_old_one(store: str) -> None:
    event = an_event()
    stores.add([Entry(OUT, event, tuple(Owed(name, is_dead=True) for name in ("payments", "orders")))])

    aevents("replay", event.id, "--again")

    (new_id,) = StoredEvent.objects.using(store).values_list("event_id", flat=True)
    assert ids_of(claim("payments")) == ids_of(claim("orders")) == [new_id]


def test_what_was_erased_is_not_replayed(store: str) -> None:
    event_id = finish()
    upkeep.erase(event_id)

    for words in ([], ["--again"]):
        printed = aevents("replay", event_id, "--done", *words)
        assert "1 was left" in printed
    assert states(store) == [State.DONE]


@pytest.mark.parametrize("verb", ["replay", "discard"])
def test_a_dead_head_blocks_its_key_until_it_is_replayed_or_discarded(verb: str) -> None:
    first = die(key="k")
    store_one("payments", event=an_event(id="second", key="k"))
    assert claim("payments") == []

    aevents(verb, first)

    expected = [first] if verb == "replay" else ["second"]
    assert ids_of(claim("payments")) == expected


# Discard


def test_a_discarded_delivery_is_gone_with_its_event(store: str) -> None:
    die()
    event = an_event()
    stores.add([Entry(OUT, event, (Owed("payments", is_dead=True), Owed("orders")))])

    assert aevents("discard", "--target", "payments") == "Discarded 2 deliveries.\n"

    assert [row.target for row in deliveries(store)] == ["orders"]
    assert [row.event_id for row in StoredEvent.objects.using(store).all()] == [event.id]


def test_what_is_owed_is_discarded_only_when_asked_for_and_never_while_it_is_tried(store: str) -> None:
    store_one("payments", due_in_s=60)
    store_one("payments", is_leased=True)
    store_one("orders", is_leased=True)
    expire(store, target="orders")
    finish("welcome")

    aevents("discard", "--all")
    assert len(deliveries(store)) == 4

    printed = aevents("discard", "--all", "--owed")
    assert printed == "Discarded 2 deliveries. 1 was left: being tried now, changed meanwhile, or erased.\n"
    assert states(store) == [State.OWED, State.DONE]
    assert deliveries(store)[0].lease


@pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True)  # SQLite has one writer at a time
def test_what_a_handlers_transaction_has_taken_is_left_and_not_waited_for(store: str) -> None:
    # Given a handler that is in the midst of its transaction, and whose lease has ended
    store_one("welcome", direction=IN)
    (claimed,) = claim("welcome", direction=IN)
    expire(store)
    taken, go_on = threading.Event(), threading.Event()

    def handle() -> None:
        from django.db import transaction

        with transaction.atomic(using=store):
            stores.take([claimed.lease])
            taken.set()
            go_on.wait(20)
        connections[store].close()

    thread = threading.Thread(target=handle)
    thread.start()
    assert taken.wait(20)
    # When
    printed = aevents("discard", "--all", "--owed")
    go_on.set()
    thread.join()
    # Then
    assert "Discarded 0 deliveries." in printed
    assert states(store) == [State.DONE]


# Retry now


def test_retry_now_ends_the_wait_and_touches_no_other(store: str) -> None:
    store_one("payments", due_in_s=3600, attempts=4)
    store_one("payments", is_leased=True)
    die()

    assert upkeep.retry_now(row.pk for row in deliveries(store)) == 1

    (claimed,) = claim("payments")
    assert claimed.lease.attempts == 4
    assert states(store) == [State.OWED, State.OWED, State.DEAD]


# Pause and resume


def test_nothing_is_claimed_for_what_is_paused_until_it_is_resumed() -> None:
    store_one("payments")

    assert "The service payments is paused:" in aevents("pause", "payments")
    assert "is paused already" in aevents("pause", "payments")
    assert claims.due() == []

    assert aevents("resume", "payments") == "The service payments is resumed.\n"
    assert len(claims.due()) == 1
    assert aevents("resume", "payments") == "The service payments was not paused.\n"


def test_a_handler_is_paused_by_its_name(store: str) -> None:
    aevents("pause", "welcome")

    assert [(row.direction, row.target) for row in Pause.objects.using(store).all()] == [(IN, "welcome")]


def test_a_name_of_both_needs_a_direction(store: str) -> None:
    subscribe_to("user-created", lambda payload: None, name="payments")

    with pytest.raises(CommandError, match="say --out or --in"):
        aevents("pause", "payments")
    aevents("pause", "payments", "--in")

    assert "The handler payments is resumed" in aevents("resume", "payments")


def test_an_unknown_name_is_refused_with_the_one_that_was_meant(store: str) -> None:
    with pytest.raises(CommandError, match="Did you mean payments"):
        aevents("pause", "payment")
    with pytest.raises(CommandError, match="No service and no handler is named ledger"):
        aevents("resume", "ledger")

    assert "This code knows no service of that name" in aevents("pause", "ledger", "--out")
    assert "is resumed" in aevents("resume", "ledger")


def test_a_name_that_only_the_store_knows_can_be_paused() -> None:
    store_one("ledger")

    assert "The service ledger is paused" in aevents("pause", "ledger")


# Prune and erase


def test_prune_removes_all_that_is_past_its_time_in_one_call(store: str, settings: Any) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "HISTORY_DAYS": 1}
    entries = [Entry(OUT, an_event(), (Owed("orders"),)) for _ in range(2500)]
    stores.add(entries)
    long_ago = tables_now() - 30 * 24 * HOUR_MS
    Delivery.objects.using(store).update(state=State.DONE, changed_ms=long_ago)
    StoredEvent.objects.using(store).update(created_ms=long_ago)
    Seen.objects.using(store).bulk_create([Seen(key=str(n), seen_ms=long_ago) for n in range(1500)])
    die()

    aevents("prune")

    assert states(store) == [State.DEAD]
    assert StoredEvent.objects.using(store).count() == 1
    assert not Seen.objects.using(store).exists()


def test_prune_removes_old_dead_ones_only_when_asked_for(store: str) -> None:
    die(id="old")
    Delivery.objects.using(store).update(changed_ms=tables_now() - 49 * HOUR_MS)
    die(id="new")

    aevents("prune")
    assert len(deliveries(store)) == 2

    assert "Discarded 1 dead delivery." in aevents("prune", "--dead-days=2")
    assert [row.event_id for row in StoredEvent.objects.using(store).all()] == ["new"]
    with pytest.raises(CommandError, match="number of days"):
        aevents("prune", "--dead-days=-1")


def test_erasing_takes_the_payload_everywhere_and_what_is_owed(store: str) -> None:
    event = an_event()
    stores.add([Entry(OUT, event, (Owed("payments", is_dead=True), Owed("orders"), Owed("ledger")))])
    stores.add([Entry(IN, event, (Owed("welcome"),))])
    stores.finish([claim("orders")[0].lease])
    die(id="other")

    printed = aevents("erase", event.id)

    assert printed == "Erased 2 payloads; discarded 3 deliveries.\n"
    left = {row.event.event_id: row.state for row in deliveries(store)}
    assert left == {event.id: State.DONE, "other": State.DEAD}
    (row,) = StoredEvent.objects.using(store).filter(event_id=event.id)
    assert row.payload is None


def test_a_try_that_is_under_way_ends_before_the_rest_of_it_is_erased(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an event that is being tried
    event = an_event()
    store_one("payments", event=event)
    (claimed,) = claim("payments")
    assert upkeep.erase(event.id) == 0
    assert upkeep.is_being_tried(event.id)
    assert claims.claim(OUT, "payments", 1) == []
    # When the try fails while the command waits for it
    setback = Setback(claimed.lease, 1, 0, 60.0, "HTTP 503")
    monkeypatch.setattr("aevents.commands.erase.time.sleep", lambda _: stores.set_back([setback]))
    printed = aevents("erase", event.id)
    # Then nothing is owed any more
    assert printed == "Erased 1 payload; discarded 1 delivery.\n"
    assert deliveries(store) == []


# Long work


@pytest.mark.parametrize("count", [2_500, pytest.param(100_000, marks=pytest.mark.soak)])
def test_any_number_is_done_in_pieces(store: str, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    # Given
    events = StoredEvent.objects.using(store)
    common = {"direction": OUT, "type": "t", "time_us": 0, "created_ms": 0}
    events.bulk_create(
        (StoredEvent(event_id=str(n), payload=b"{}", **common) for n in range(count)), batch_size=5000
    )
    Delivery.objects.using(store).bulk_create(
        (
            Delivery(event_id=pk, direction=OUT, target="payments", state=State.DEAD, due_ms=0, changed_ms=0)
            for pk in events.values_list("pk", flat=True).iterator()
        ),
        batch_size=5000,
    )
    sizes: list[int] = []
    discard = upkeep.discard

    def discard_some(pks: list[int]) -> int:
        sizes.append(len(pks))
        return discard(pks)

    monkeypatch.setattr(upkeep, "discard", discard_some)
    # When
    assert aevents("replay", "--all") == f"Replayed {count:,} deliveries.\n"
    assert aevents("discard", "--owed", "--all") == f"Discarded {count:,} deliveries.\n"
    # Then
    assert max(sizes) == upkeep.ROWS
    assert not Delivery.objects.using(store).exists()
    assert not events.exists()


def test_a_trouble_of_the_database_that_passes_ends_no_long_work(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    die()
    replay, troubles = upkeep.replay, [OperationalError(1213, "Deadlock found")] * 2

    def replay_at_last(pks: list[int]) -> int:
        if troubles:
            raise troubles.pop()
        return replay(pks)

    monkeypatch.setattr(upkeep, "replay", replay_at_last)
    monkeypatch.setattr("aevents.commands.base.time.sleep", lambda _: None)

    assert aevents("replay", "--all") == "Replayed 1 delivery.\n"
    assert states(store) == [State.OWED]


def test_the_clock_of_the_database_is_this_machines_here() -> None:
    from aevents import status

    assert abs(status.clock_ms() - tables_now()) < 5000
    assert tables.why_not() is None
