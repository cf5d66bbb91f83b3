"""A user's tests with pytest-django: see `tests/test_testing_kit.py`, which runs them in a process."""

import os
import threading

import pytest
from django.db import transaction
from django.test import Client
from django.utils import timezone, translation
from shop import events
from shop.models import Order
from shop.services import place

from aevents import InvalidEvent, aemit, emit, emit_many, suppressed
from aevents.testing import Emitted, adeliver, deliver


@pytest.fixture(autouse=True)
def _nothing_seen():
    events.seen.clear()


# What was emitted


def test_what_was_emitted_is_there_in_order(db, emitted):
    assert not emitted
    assert emitted == []
    place("one")
    emit("told", {"n": 1})

    assert emitted.types() == ["order-placed", "told"]
    assert emitted.payloads("told") == [{"n": 1}]
    assert emitted.services("order-placed") == [("stock", "shop")]
    assert emitted == [
        ("order-placed", {"order_id": Order.objects.get().pk, "text": "one"}),
        ("told", {"n": 1}),
    ]
    assert emitted != [("told", {"n": 1})]
    assert len(emitted) == 2
    assert emitted[-1].payload == {"n": 1}
    assert [event.source for event in emitted[:1]] == ["shop"]
    assert "('told', {'n': 1})" in repr(emitted)


def test_what_the_test_before_emitted_is_gone(emitted):
    assert emitted == []
    emitted.clear()


@pytest.fixture
def an_order(db):
    place("from a fixture")


def test_what_a_fixture_emits_counts_before(an_order, emitted):
    assert emitted.types() == ["order-placed"]


def test_what_a_fixture_emits_counts_after(emitted, an_order):
    assert emitted.types() == ["order-placed"]
    emitted.clear()
    assert emitted == []


def test_no_fixture_is_needed_to_look(db):
    place("one")
    assert Emitted().types() == ["order-placed"]


def test_a_test_without_database_may_emit(emitted):
    emission = emit("told", {})
    assert emission.delivered
    assert [(result.service, result.attempts) for result in emission.results] == [("stock", 1)]
    assert emitted.types() == ["told"]


def test_many_and_suppressed(emitted):
    emit_many([("told", {"n": 1}), ("told", {"n": 2})])
    with suppressed("an import"):
        emit("told", {"n": 3})
    assert emitted.payloads("told") == [{"n": 1}, {"n": 2}]


def test_a_payload_is_as_it_will_arrive(emitted):
    payload = {"at": timezone.now(), "n": [1]}
    emit("told", payload)
    payload["n"].append(2)

    assert emitted.payloads("told")[0]["n"] == [1]
    assert isinstance(emitted.payloads("told")[0]["at"], str)


# Transactions


def test_what_was_rolled_back_is_gone(db, emitted):
    with pytest.raises(ValueError, match="after the emit"):
        place("gone", then_fail=True)
    place("kept")
    with transaction.atomic():
        place("gone with the outer block")
        transaction.set_rollback(True)

    assert [payload["text"] for payload in emitted.payloads("order-placed")] == ["kept"]


def test_the_outcome_is_that_of_production(db):
    assert [result.outcome for result in emit("told", {}).results] == ["delivered"]
    assert [result.outcome for result in place("one").results] == ["queued", "queued"]


def test_on_commit_hooks_may_be_run(db, emitted, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        emit("told", {"n": 1})
        assert callbacks == []
        transaction.on_commit(lambda: emit("told", {"n": 2}))
        place("one")

    assert emitted.types() == ["told", "order-placed", "told"]


def test_real_transactions(transactional_db, emitted):
    place("kept")
    with pytest.raises(ValueError, match="after the emit"):
        place("gone", then_fail=True)
    with transaction.atomic():
        place("kept too")
        assert len(emitted) == 2

    assert [payload["text"] for payload in emitted.payloads("order-placed")] == ["kept", "kept too"]


# One's own handlers


def test_handlers_run_here_and_see_this_transaction(db, emitted):
    Order.objects.create(text="bread")
    with translation.override("de"), timezone.override("Asia/Tokyo"):
        handled = deliver("stock-arrived", {"text": "bread"})
        assert (translation.get_language(), timezone.get_current_timezone_name()) == ("de", "Asia/Tokyo")

    assert [entry.handler for entry in handled] == ["shop.events.fill", "shop.events.note"]
    assert {order.text for order in Order.objects.all()} == {"filled", "noted"}
    assert sorted(emitted.types()) == ["order-filled", "told"]
    assert {event.hops for event in emitted} == {1}
    assert (threading.current_thread(), "en-us", "UTC") in events.seen
    assert ("stock-arrived", "test", 1) in events.seen


def test_the_source_may_be_chosen(db):
    deliver("stock-arrived", {"text": "bread"}, source="stock", key="bread")
    assert ("stock-arrived", "stock", 1) in events.seen


def test_what_a_handler_raises_is_raised_and_its_work_undone(db):
    with pytest.raises(ValueError, match="no"):
        deliver("one-fails", {})
    assert events.seen == ["works"]
    assert not Order.objects.exists()


def test_what_several_raise_is_raised_together(db):
    with pytest.raises(ExceptionGroup, match="2 handlers of 'two-fail' failed") as raised:
        deliver("two-fail", {})
    assert {type(error) for error in raised.value.exceptions} == {ValueError, KeyError}


def test_an_unknown_type_is_told():
    with pytest.raises(LookupError, match=r"'stock_arrived'; did you mean 'stock-arrived'\?"):
        deliver("stock_arrived", {})
    with pytest.raises(LookupError, match="no handler is subscribed to 'nothing-like-it'"):
        deliver("nothing-like-it", {})


def test_a_handler_without_database_needs_no_database():
    deliver("no-database", {"n": (1, 2)})
    assert events.seen == [{"n": [1, 2]}]


def test_a_handler_s_hooks_run_as_django_s_tests_run_them(db, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        deliver("hooked", {})
    assert events.seen == ["committed"]


@pytest.mark.asyncio
async def test_async_tests_have_a_deliver_of_their_own(emitted):
    await adeliver("no-database", {"n": 1})
    emission = await aemit("told", {})

    assert events.seen == [{"n": 1}]
    assert emission.delivered
    assert emitted.types() == ["told"]


# The endpoint


def post(**headers):
    body = {"event_type": "stock-arrived", "payload": {"text": "bread"}}
    return Client().post("/events/", body, "application/json", headers=headers)


@pytest.mark.parametrize("time", ["first", "second"])
def test_what_is_posted_is_handled_here_whatever_a_test_before_posted(db, emitted, time):
    Order.objects.create(text="bread")

    response = post(**{"webhook-id": "the-same-in-both"})

    assert response.json() == {"id": "the-same-in-both", "status": "handled"}
    assert Order.objects.filter(text="filled").exists()
    assert threading.current_thread() in [entry[0] for entry in events.seen]
    assert sorted(emitted.types()) == ["order-filled", "told"]


def test_a_failing_handler_is_a_503(db):
    body = {"event_type": "one-fails", "payload": {}}
    response = Client().post("/events/", body, "application/json")
    assert response.status_code == 503
    assert "shop.events.fails" in response.json()["detail"]


def test_views_of_one_s_own(db, client, emitted):
    assert client.get("/orders/").json() == {"outcomes": ["queued", "queued"]}
    assert client.get("/aorders/").json() == {"outcomes": ["delivered", "delivered"]}
    assert [payload["text"] for payload in emitted.payloads("order-placed")] == ["viewed", "aviewed"]


# Switches


@pytest.mark.parametrize("payload", [7, {"x": object()}, {"x": float("nan")}])
def test_a_wrong_call_raises(emitted, payload):
    with pytest.raises(InvalidEvent):
        emit("told", payload)
    with pytest.raises(InvalidEvent):
        emit("", {})
    assert emitted == []


def test_a_wrong_call_does_not_raise_where_strict_is_off(settings):
    settings.AEVENTS = {**settings.AEVENTS, "STRICT": False}
    assert not emit("told", 7).ok


def test_enabled_really_sends(settings, emitted):
    settings.AEVENTS = {
        **settings.AEVENTS,
        "ENABLED": True,
        "SERVICES": {"stock": os.environ["REAL_URL"]},
    }
    emission = emit("told", {"n": 1})
    assert emission.delivered, emission
    assert emitted == []


def test_switched_off_nothing_is_emitted_nor_recorded(settings, emitted):
    settings.AEVENTS = {**settings.AEVENTS, "ENABLED": False}
    emission = emit("told", {"n": 1})
    assert emission.ok
    assert emission.results == ()
    assert emitted == []
