"""The store's verbs, the same on each database: what is stored, claimed, done and set back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connections, transaction

from aevents import claims, tables
from aevents import store as stores
from aevents.claims import Claimed
from aevents.event import Event, new_id
from aevents.models import Delivery, Pause, Seen, State, StoredEvent
from aevents.store import Entry, Owed, Setback
from aevents.tables import IN, OUT, Lease, LeaseLost

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(autouse=True)
def _closed(store: str) -> Iterator[None]:
    yield
    connections[store].close()


def an_event(event_type: str = "user-created", **more: Any) -> Event:
    return Event(
        **{
            "id": new_id(),
            "type": event_type,
            "data": b'{"n":1}',
            "source": "accounts",
            "time": datetime(2026, 11, 25, 10, 0, 0, 123456, tzinfo=UTC),
            **more,
        }
    )


def store_one(*targets: str, direction: int = OUT, event: Event | None = None, **owed: Any) -> list[Any]:
    entry = Entry(direction, event or an_event(), tuple(Owed(target, **owed) for target in targets))
    (leases,) = stores.add([entry])
    return list(leases)


def claim(target: str, limit: int = 10, direction: int = OUT, **more: Any) -> list[Claimed]:
    return claims.claim(direction, target, limit, **more)


def deliveries(store: str, **where: Any) -> list[Delivery]:
    return list(Delivery.objects.using(store).filter(**where).order_by("pk"))


def expire(store: str, **where: Any) -> None:
    """Let the leases end now."""
    Delivery.objects.using(store).filter(**where).update(due_ms=0)


def test_an_event_comes_back_as_it_was_stored(store: str) -> None:
    event = an_event(
        "größe-✓", data='{"text":"\\u0000 \\ud800 €"}'.encode(), key="K ", cause="c", correlation="d", hops=3,
        trace="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )  # fmt: skip
    store_one("payments", event=event)

    (claimed,) = claim("payments")

    assert claimed.event == event
    assert claimed.target == "payments"


def test_each_target_is_owed_by_itself(store: str) -> None:
    store_one("payments", "orders")

    assert len(claim("payments")) == 1
    assert len(claim("orders")) == 1
    assert StoredEvent.objects.using(store).count() == 1


def test_what_is_claimed_is_claimed_by_nobody_else() -> None:
    store_one("payments")

    assert len(claim("payments")) == 1
    assert claim("payments") == []


def test_what_is_born_leased_is_claimed_by_nobody_until_the_lease_ends(store: str) -> None:
    (lease,) = store_one("payments", is_leased=True)
    assert lease is not None
    assert claim("payments") == []

    expire(store)

    (claimed,) = claim("payments")
    assert claimed.lease.id == lease.id
    assert claimed.lease.token != lease.token


def test_several_events_are_stored_at_once_in_order(store: str) -> None:
    events = [an_event(data=b'{"n":%d}' % n) for n in range(700)]
    found = stores.add([Entry(OUT, event, (Owed("a", True), Owed("b", True))) for event in events])

    assert len(found) == 700
    stored = {row.pk: row.event_id for row in Delivery.objects.using(store).all()}
    pks = {row.event_id: row.pk for row in StoredEvent.objects.using(store).all()}
    for event, leases in zip(events, found, strict=True):
        for lease in leases:
            assert isinstance(lease, Lease)
            assert stored[lease.id] == lease.event_pk == pks[event.id]


def test_what_is_done_is_gone_with_its_event(store: str) -> None:
    store_one("payments", "orders")
    (payments,), (orders,) = claim("payments"), claim("orders")

    stores.finish([payments.lease])
    assert StoredEvent.objects.using(store).count() == 1
    stores.finish([orders.lease])

    assert StoredEvent.objects.using(store).count() == 0
    assert deliveries(store) == []


def test_with_a_history_what_is_done_stays(store: str, settings: Any) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "HISTORY_DAYS": 3}
    store_one("payments")

    stores.finish([claim("payments")[0].lease])

    assert [row.state for row in deliveries(store)] == [State.DONE]
    assert claim("payments") == []


def test_whoever_lost_the_lease_changes_nothing(store: str) -> None:
    store_one("payments")
    (old,) = claim("payments")
    expire(store)
    (new,) = claim("payments")

    stores.finish([old.lease])
    stores.set_back([Setback(old.lease, 1, 0, 60, "late")])
    stores.give_back([(old.lease, 60)])
    assert stores.renew([old.lease]) == {old.lease.id}
    with pytest.raises(LeaseLost), transaction.atomic(using=store):
        stores.take([old.lease])

    assert stores.renew([new.lease]) == set()
    assert [(row.lease, row.attempts, row.error) for row in deliveries(store)] == [(new.lease.token, 0, "")]


def test_a_set_back_is_due_later_and_counts(store: str) -> None:
    store_one("payments")
    (first,) = claim("payments")

    stores.set_back([Setback(first.lease, 1, 1, 60, "refused\n\0")])

    assert claim("payments") == []
    expire(store)
    (again,) = claim("payments")
    assert (again.lease.attempts, again.lease.refusals) == (1, 1)
    assert deliveries(store)[0].error == r"'refused\n\x00'"


def test_what_is_given_back_counts_as_no_attempt() -> None:
    store_one("payments")
    stores.give_back([(claim("payments")[0].lease, 0.0)])

    (again,) = claim("payments")
    assert (again.lease.attempts, again.lease.losses) == (0, 0)


def test_the_dead_are_claimed_by_nobody(store: str) -> None:
    store_one("payments")
    stores.set_back([Setback(claim("payments")[0].lease, 16, 0, 0.0, "gone", is_dead=True)])

    assert claim("payments") == []
    assert [row.state for row in deliveries(store)] == [State.DEAD]


def test_of_one_key_only_the_oldest_is_claimed(store: str) -> None:
    for n in range(3):
        store_one("payments", "orders", event=an_event(data=b"%d" % n, key="user-7"))
    store_one("payments", event=an_event(data=b"3", key="user-8"))

    assert [claimed.event.data for claimed in claim("payments")] == [b"0", b"3"]
    assert [claimed.event.data for claimed in claim("orders")] == [b"0"]
    assert claim("payments") == []


def test_a_dead_head_blocks_its_key_only(store: str) -> None:
    for key in ("a", "a", "b"):
        store_one("payments", event=an_event(key=key))
    first, other = claim("payments")
    stores.set_back([Setback(first.lease, 1, 0, 0.0, "no", is_dead=True)])
    stores.finish([other.lease])
    assert claim("payments") == []

    Delivery.objects.using(store).filter(pk=first.lease.id).delete()

    assert len(claim("payments")) == 1


@pytest.mark.parametrize("other", ["Paid", "paid ", "pai\u0301d"])
def test_names_that_differ_a_little_are_different(store: str, other: str) -> None:
    store_one("paid", event=an_event("paid", key="paid"))
    store_one(other, event=an_event(other, key=other))

    assert [c.event.type for c in claim("paid")] == ["paid"]
    assert [c.event.type for c in claim(other)] == [other]
    assert StoredEvent.objects.using(store).filter(type="paid").count() == 1


def test_an_arrival_is_stored_once(store: str) -> None:
    event = an_event()
    entry = Entry(IN, event, (Owed("handler", is_leased=True),))

    assert [found is not None for found in stores.arrive([entry, entry])] == [True, False]
    assert stores.arrive([entry]) == [None]
    assert len(deliveries(store)) == 1


@pytest.mark.parametrize("twin", ["ABC", "abc ", "abc" + "\u00e9"])
def test_arrivals_with_ids_that_differ_a_little_are_two(twin: str) -> None:
    entries = [Entry(IN, an_event(id=each), (Owed("handler"),)) for each in ("abc", twin)]

    assert all(found is not None for found in stores.arrive(entries))


def test_an_arrival_that_was_rolled_back_can_come_again(store: str) -> None:
    entry = Entry(IN, an_event(), (Owed("handler"),))
    with transaction.atomic(using=store):
        stores.arrive([entry])
        transaction.set_rollback(True, using=store)

    assert stores.arrive([entry]) != [None]


def test_many_who_store_the_same_arrivals_store_each_once(store: str) -> None:
    entries = [Entry(IN, an_event(), (Owed("handler"),)) for _ in range(20)]
    stored: list[int] = []

    def arrive(order: int) -> None:
        for attempt in range(50):
            try:
                found = stores.arrive(entries[::order])
            except Exception:
                if attempt == 49:
                    raise
                continue
            stored.append(sum(each is not None for each in found))
            break
        connections[store].close()

    threads = [threading.Thread(target=arrive, args=(order,)) for order in (1, -1) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(stored) == 20
    assert len(stored) == 6
    assert Seen.objects.using(store).count() == 20


def test_taking_a_delivery_is_undone_with_the_transaction(store: str) -> None:
    store_one("handler", direction=IN)
    (claimed,) = claim("handler", direction=IN)
    with transaction.atomic(using=store):
        stores.take([claimed.lease])
        transaction.set_rollback(True, using=store)
    assert len(deliveries(store)) == 1

    with transaction.atomic(using=store):
        stores.take([claimed.lease])

    assert deliveries(store) == []


def test_whose_holder_vanishes_again_and_again_is_tried_alone_and_is_dead_in_the_end(store: str) -> None:
    store_one("payments")
    for _ in range(tables.SUSPECT_AFTER + 1):
        assert len(claim("payments")) == 1
        expire(store)

    assert claim("payments") == []
    assert [(due.is_suspect, due.target) for due in claims.due()] == [(True, "payments")]
    for _ in range(tables.LOST_AFTER - tables.SUSPECT_AFTER):
        assert len(claim("payments", suspects=True)) == 1
        expire(store)

    assert claim("payments", suspects=True) == []
    (row,) = deliveries(store)
    assert row.state == State.DEAD
    assert "ended without a word" in row.error


def test_an_outcome_clears_a_suspect(store: str) -> None:
    store_one("payments")
    for _ in range(tables.SUSPECT_AFTER + 1):
        claim("payments")
        expire(store)
    claim("payments")
    (alone,) = claim("payments", suspects=True)

    stores.set_back([Setback(alone.lease, 1, 0, 0.0, "no")])

    assert [claimed.lease.losses for claimed in claim("payments")] == [0]


def test_what_is_due_is_told_by_target_without_what_is_paused(store: str) -> None:
    store_one("payments", "orders", due_in_s=60)
    store_one("payments", due_in_s=-5)
    Pause.objects.using(store).create(direction=OUT, target="orders", since_ms=0)

    (due,) = claims.due()

    assert (due.direction, due.target) == (OUT, "payments")
    assert -6 < due.in_s < -4


def test_a_transaction_that_lasts_does_not_stop_the_clock(store: str) -> None:
    with transaction.atomic(using=store):
        store_one("payments", due_in_s=0)
        first = deliveries(store)[0].due_ms
        threading.Event().wait(0.05)
        store_one("payments", due_in_s=0)
        assert deliveries(store)[1].due_ms - first >= 40


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/St_Johns"])
def test_no_time_zone_moves_a_lease(store: str, settings: Any, zone: str) -> None:
    settings.TIME_ZONE, settings.USE_TZ = zone, False
    connections[store].close()
    store_one("payments")

    (due,) = claims.due()

    assert abs(due.in_s) < 5
