"""The admin: what it shows of the store and to whom, what its actions change, how often it asks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.core import checks
from django.core.management import call_command
from django.db import connections
from django.db.models import signals
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.utils.html import strip_tags

from aevents import readable, tables, upkeep
from aevents.event import Event
from aevents.models import Delivery, Pause, State, StoredEvent
from aevents.store import Owed
from aevents.tables import IN, OUT
from tests.admin_project import settings as project
from tests.admin_project.sample import SCRIPT, an_event, dead, done, put
from tests.databases import Database
from tests.pages import DOCS, Page

DELIVERIES = "/admin/aevents/delivery/"
EVENTS = "/admin/aevents/storedevent/"
PAUSES = "/admin/aevents/pause/"
LOOK = ("view_delivery", "view_storedevent", "view_pause")
SETTINGS = {name: value for name, value in vars(project).items() if name.isupper() and name != "DATABASES"}

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(scope="module", autouse=True)
def people(django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The project with the admin, whose users have a database of their own; all of it is gone afterwards."""
    registered = checks.registry.registry.registered_checks
    receivers = signals.post_migrate.receivers
    checks.registry.registry.registered_checks = set(registered)
    signals.post_migrate.receivers = list(receivers)
    try:
        with django_db_blocker.unblock(), override_settings(**SETTINGS):
            url = f"sqlite:///{tmp_path_factory.mktemp('people')}/people.sqlite3"
            with Database("people", url).attached():
                call_command("migrate", database="people", verbosity=0)  # once more, for the permissions
                yield
    finally:
        checks.registry.registry.registered_checks = registered
        signals.post_migrate.receivers = receivers
        signals.post_migrate.sender_receivers_cache.clear()


@pytest.fixture(autouse=True)
def _closed(store: str) -> Iterator[None]:
    yield
    connections[store].close()


def sign_in(*permissions: str) -> Client:
    """Return the browser of one of the staff, who may do that much; without any: of a superuser."""
    from django.contrib.auth.models import Permission, User

    name = f"user-{User.objects.count()}"
    user = User.objects.create(username=name, is_staff=True, is_superuser=not permissions)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def only(store: str, **where: Any) -> Delivery:
    return Delivery.objects.using(store).get(**where)


def text_of(response: Any) -> str:
    assert response.status_code == 200
    return " ".join(strip_tags(response.content.decode()).split())


def act(client: Client, action: str, *rows: Any, path: str = DELIVERIES, **more: str) -> Any:
    """Choose the rows in the list, and the action."""
    chosen = {"_selected_action": [str(row.pk) for row in rows], "action": action, "index": "0", **more}
    return client.post(path, chosen, follow=True)


def confirm(client: Client, page: Any, path: str = DELIVERIES) -> Any:
    """Press the button of the page that asks."""
    fields: dict[str, list[str]] = {}
    for name, value in re.findall(
        r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.content.decode()
    ):
        fields.setdefault(name, []).append(value)
    return client.post(path, fields, follow=True)


def messages_of(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


# What is shown


def test_a_delivery_is_shown_with_its_attempts_its_error_and_its_times_in_utc(store: str) -> None:
    put(an_event(), Owed("payments", attempts=4, error="connection refused", due_in_s=600))
    row = only(store)
    Delivery.objects.using(store).update(due_ms=1_790_000_000_000)
    StoredEvent.objects.using(store).update(created_ms=1_780_000_000_000)

    for path in (DELIVERIES, f"{DELIVERIES}{row.pk}/change/"):
        page = text_of(sign_in().get(path))

        assert "user-created" in page
        assert row.event.event_id in page
        assert "payments" in page
        assert "connection refused" in page
        assert "2026-09-21 14:13:20 UTC" in page
        assert "2026-05-28 20:26:40 UTC" in page
    assert "4 attempts" in text_of(sign_in().get(DELIVERIES))


def test_a_leased_delivery_says_until_when() -> None:
    put(an_event(), Owed("payments", is_leased=True))

    page = text_of(sign_in().get(DELIVERIES))

    assert re.search(r"being tried.*UTC ?leased until then, in \d\d s", page)


def test_what_waits_for_another_or_for_a_person_says_so(store: str) -> None:
    put(an_event(key="A-17"), Owed("payments"))
    put(an_event(key="A-17"), Owed("payments"))
    put(an_event(), Owed("reports"))
    upkeep.pause(OUT, "reports")

    page = text_of(sign_in().get(DELIVERIES))

    assert page.count("after an older one of its key") == 1
    assert page.count("the target is paused") == 1


def test_an_event_is_shown_with_all_who_are_owed_it() -> None:
    event = put(an_event("order-paid", key="A-17"), Owed("payments"), dead("orders", "410 Gone"))
    stored = tables.events().get(event_id=event.id)

    page = text_of(sign_in().get(f"{EVENTS}{stored.pk}/change/"))

    for word in ("order-paid", event.id, "A-17", "payments", "orders", "410 Gone"):
        assert word in page


def test_nothing_from_outside_is_taken_for_html() -> None:
    event = put(an_event(f"x{SCRIPT}", f'{{"a":"{SCRIPT}"}}'.encode(), key=SCRIPT), dead(SCRIPT, SCRIPT))
    stored = tables.events().get(event_id=event.id)
    client = sign_in()
    row = tables.deliveries().get()

    for page in (
        client.get(DELIVERIES),
        client.get(DELIVERIES, {"target": SCRIPT, "type": SCRIPT}),
        client.get(f"{DELIVERIES}{row.pk}/change/"),
        client.get(EVENTS),
        client.get(f"{EVENTS}{stored.pk}/change/"),
        act(client, "discard", row),
        act(client, "erase", stored, path=EVENTS),
        act(client, "pause", row),
        client.get(PAUSES),
    ):
        assert page.status_code == 200
        assert SCRIPT.encode() not in page.content
        assert b"&lt;script&gt;alert(1)&lt;/script&gt;" in page.content


def test_what_cannot_be_seen_is_shown_as_an_escape() -> None:
    put(an_event("\x1b[31mred", key="\u202eabc"), dead("payments", "\x1b[2Jgone"))
    client = sign_in()

    page = strip_tags(client.get(DELIVERIES).content.decode() + client.get(EVENTS).content.decode())

    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "\\x1b[31mred" in page


# The payload


def payload_page(client: Client, event: Event) -> str:
    stored = tables.events().get(event_id=event.id)
    page = client.get(f"{EVENTS}{stored.pk}/change/").content.decode()
    assert "Payload" in page
    return page


def test_the_payload_is_for_those_who_have_its_permission() -> None:
    event = put(an_event(data=b'{"secret":"4711"}'), Owed("payments"))

    refused = payload_page(sign_in(*LOOK), event)
    shown = payload_page(sign_in(*LOOK, "view_payload"), event)

    assert "4711" not in refused
    assert "aevents.view_payload" in refused
    assert "&quot;secret&quot;: &quot;4711&quot;" in shown


@pytest.mark.parametrize("lookup", ["payload__startswith", "payload__contains", "event__payload__startswith"])
def test_nobody_feels_his_way_to_a_payload_by_lookups(lookup: str) -> None:
    put(an_event(), Owed("payments"))
    client = sign_in(*LOOK)

    assert client.get(EVENTS, {lookup: "x"}).status_code == 400
    assert client.get(DELIVERIES, {lookup: "x"}).status_code == 400


def test_an_erased_payload_says_so() -> None:
    event = put(an_event(), dead("payments", "x"))
    tables.events().update(payload=None)

    assert "erased" in payload_page(sign_in(*LOOK), event)
    assert "erased" in payload_page(sign_in(*LOOK, "view_payload"), event)
    assert "payload erased" in text_of(sign_in().get(DELIVERIES))


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"a":[1,"gr\xc3\xb6\xc3\x9fe"]}', '{\n  "a": [\n    1,\n    "größe"\n  ]\n}'),
        (b'{"a":"\\u0000\\u202e"}', '{\n  "a": "\\u0000\\u202e"\n}'),
        (b'{"a":"\\ud800"}', '{"a":"\\ud800"}'),
        (b"\xff\x1b no json", "\\xff\\x1b no json"),
        (b"[" * 20_000, "[" * 20_000),
        (b'{"n":12345678901234567890}', '{\n  "n": 12345678901234567890\n}'),
    ],
)
def test_a_small_payload_is_indented_where_it_is_json_and_shown_as_it_is_elsewhere(
    data: bytes, text: str
) -> None:
    shown, note = readable.json_text(data)

    assert shown == text
    assert f"{len(data):,} bytes" in note


@pytest.mark.parametrize(
    "data", [b'"' + b"x" * 200_000 + b'"', b"\xff" * 200_000, b"[" + b"[0]," * 8_000 + b"0]"]
)
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_of_a_large_payload_the_beginning_is_shown(data: bytes) -> None:
    shown, note = readable.json_text(data)

    assert len(shown) <= readable.SHOWN
    assert f"{len(data):,} bytes" in note


# Finding


def shown(client: Client, path: str = DELIVERIES, **query: str) -> list[str]:
    """Return what the list has: the targets of deliveries, the types of events, in order of the list."""
    rows = client.get(path, query).context["cl"].result_list
    return sorted(row.target if isinstance(row, Delivery) else row.type for row in rows)


def test_a_list_is_narrowed_by_state_direction_target_type_and_age(store: str) -> None:
    put(an_event("a"), Owed("owed"), Owed("leased", is_leased=True))
    put(an_event("b"), dead("dead", "x"), direction=IN)
    done(an_event("a"), "done")
    client = sign_in()

    assert shown(client) == ["dead", "done", "leased", "owed"]
    assert shown(client, state="owed") == ["leased", "owed"]
    assert shown(client, state="leased") == ["leased"]
    assert shown(client, state="suspect") == []
    assert shown(client, state="dead") == ["dead"]
    assert shown(client, state="done") == ["done"]
    assert shown(client, direction="in") == ["dead"]
    assert shown(client, target="owed") == ["owed"]
    assert shown(client, type="b") == ["dead"]
    assert shown(client, type="a", state="done", direction="out", stored="hour") == ["done"]
    assert shown(client, stored="older") == []
    assert shown(client, EVENTS, type="b") == ["b"]
    assert shown(client, EVENTS, direction="out", stored="day") == ["a", "a"]
    StoredEvent.objects.using(store).update(created_ms=1)
    assert shown(client, stored="week") == []
    assert shown(client, stored="older", state="dead") == ["dead"]


def test_an_event_is_found_by_its_id_and_by_nothing_like_it(store: str) -> None:
    put(an_event(id="Abc"), Owed("one"))
    put(an_event(id="abc"), Owed("two"))
    client = sign_in()

    assert shown(client, q="abc") == ["two"]
    assert shown(client, q=" Abc ") == ["one"]
    assert shown(client, q="ab") == []
    assert len(shown(client, EVENTS, q="abc")) == 1


@pytest.mark.parametrize("name", ["q", "state", "direction", "target", "type", "stored", "p", "o"])
def test_whatever_stands_in_the_address_is_no_error(name: str) -> None:
    client = sign_in()

    for value in ("\0", "x" * 3000, "%", "größe", "' OR 1=1 --", "\\"):
        assert client.get(DELIVERIES, {name: value}, follow=True).status_code == 200
        assert client.get(EVENTS, {name: value}, follow=True).status_code in (200, 400)


def choices(client: Client, title: str, **query: str) -> list[str]:
    filters = client.get(DELIVERIES, query).context["cl"].filter_specs
    (found,) = [each for each in filters if each.title == title]
    return [value for value, _ in found.lookup_choices]


def test_every_target_in_the_store_is_offered_once_and_no_more_than_a_hundred(store: str) -> None:
    put(an_event(), *(Owed(name) for name in ("b", "a", "Paid", "paid")))
    put(an_event(), dead("a", "x"), dead("vanished", "x"), direction=IN)
    client = sign_in()

    assert choices(client, "target") == ["Paid", "a", "b", "paid", "vanished"]
    put(an_event(), *(Owed(f"t-{n:03}") for n in range(200)))
    assert len(choices(client, "target")) == 100
    assert choices(client, "target", target="t-199")[0] == "t-199"


def test_types_are_offered_that_came_lately() -> None:
    put(an_event("b"), Owed("payments"))
    put(an_event("a"), Owed("payments"))

    assert choices(sign_in(), "type") == ["a", "b"]
    assert choices(sign_in(), "type", type="z") == ["z", "a", "b"]


# What it costs


@pytest.mark.parametrize("path", [DELIVERIES, EVENTS, PAUSES])
def test_a_list_takes_as_many_queries_for_many_rows_as_for_one(store: str, path: str) -> None:
    def count() -> int:
        with CaptureQueriesContext(connections[store]) as queries:
            assert client.get(path).status_code == 200
        return len(queries)

    client = sign_in()
    put(an_event(key="k"), Owed("t-0"))
    upkeep.pause(OUT, "t-0")
    few = count()
    for n in range(30):
        put(an_event(f"type-{n}", key="k"), Owed(f"t-{n}"), dead(f"u-{n}", "x"))
        upkeep.pause(OUT, f"t-{n}")

    assert few <= 4
    assert count() <= few + 1  # where there are several pages, the keys of one


def test_an_event_takes_as_many_queries_for_many_deliveries_as_for_one(store: str) -> None:
    def count(event: Event) -> int:
        pk = tables.events().get(event_id=event.id).pk
        with CaptureQueriesContext(connections[store]) as queries:
            assert client.get(f"{EVENTS}{pk}/change/").status_code == 200
        return len(queries)

    client = sign_in()
    one = put(an_event(), Owed("t"))
    many = put(an_event(), *(Owed(f"t-{n}") for n in range(30)))

    assert count(many) == count(one) <= 4


def test_no_list_reads_a_payload(store: str) -> None:
    put(an_event(), Owed("payments"))
    client = sign_in()

    for path in (DELIVERIES, EVENTS):
        with CaptureQueriesContext(connections[store]) as queries:
            client.get(path)
        selected = [re.sub(r".payload. IS (NOT )?NULL", "", query["sql"]) for query in queries]
        assert not [sql for sql in selected if "payload" in sql]


def test_what_is_counted_is_not_joined(store: str) -> None:
    """Joined to their events, 200,000 deliveries take a second to count."""
    put(an_event(), Owed("payments"))
    client = sign_in()

    with CaptureQueriesContext(connections[store]) as queries:
        client.get(DELIVERIES, {"state": "owed", "target": "payments"})

    (count,) = [query["sql"] for query in queries if "COUNT" in query["sql"]]
    assert "JOIN" not in count


def test_the_database_of_the_users_and_the_default_one_are_not_asked() -> None:
    put(an_event(), Owed("payments"))
    client = sign_in()

    with (
        CaptureQueriesContext(connections["people"]) as people,
        CaptureQueriesContext(connections["default"]) as none,
    ):
        client.get(DELIVERIES)

    assert not [query for query in people if "aevents" in query["sql"]]
    assert len(none) == 0


# What is refused


@pytest.mark.parametrize("path", [DELIVERIES, EVENTS, PAUSES])
def test_nothing_is_added_changed_or_deleted(store: str, path: str) -> None:
    put(an_event(), Owed("payments"))
    upkeep.pause(OUT, "payments")
    client = sign_in()
    row = client.get(path).context["cl"].result_list[0]

    assert client.get(f"{path}add/").status_code == 403
    assert client.post(f"{path}add/", {}).status_code == 403
    assert client.get(f"{path}{row.pk}/delete/").status_code == 403
    assert client.post(f"{path}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert client.post(f"{path}{row.pk}/change/", {"attempts": "0"}).status_code == 403
    page = client.get(f"{path}{row.pk}/change/").content.decode()
    assert 'name="_save"' not in page
    assert client.get(path).context["action_form"].fields["action"].choices != []
    assert "delete_selected" not in client.get(path).content.decode()


def offered(client: Client, path: str) -> set[str]:
    form = client.get(path).context["action_form"]
    return {name for name, _ in form.fields["action"].choices if name} if form else set()


@pytest.mark.parametrize(
    ("permission", "path", "actions"),
    [
        ("view_delivery", DELIVERIES, set()),
        ("change_delivery", DELIVERIES, {"retry", "replay"}),
        ("delete_delivery", DELIVERIES, {"discard"}),
        ("add_pause", DELIVERIES, {"pause"}),
        ("delete_pause", PAUSES, {"resume"}),
        ("change_storedevent", EVENTS, set()),
        ("delete_storedevent", EVENTS, {"erase"}),
    ],
)
def test_each_action_needs_its_permission(store: str, permission: str, path: str, actions: set[str]) -> None:
    put(an_event(), dead("payments", "x"), Owed("orders", due_in_s=600))
    upkeep.pause(OUT, "reports")
    client = sign_in(*LOOK, permission)

    assert offered(client, path) == actions
    for action in {"retry", "replay", "discard", "pause"} - actions:
        for row in Delivery.objects.using(store).all():
            act(client, action, row)
            act(client, action, row, confirmed="yes")
    assert {(d.target, d.state) for d in Delivery.objects.using(store).all()} == {
        ("payments", State.DEAD),
        ("orders", State.OWED),
    }
    assert only(store, target="orders").due_ms > upkeep_now(store)
    assert [pause.target for pause in Pause.objects.using(store).all()] == ["reports"]


def upkeep_now(store: str) -> int:
    from aevents.status import clock_ms

    return clock_ms()


def test_who_may_look_at_nothing_sees_nothing() -> None:
    put(an_event(), Owed("payments"))

    assert sign_in("view_session").get(DELIVERIES).status_code == 403
    assert Client().get(DELIVERIES).status_code == 302


# What the actions do


def test_retry_makes_due_what_waits_and_says_what_it_left(store: str) -> None:
    put(
        an_event(),
        Owed("waits", due_in_s=600),
        Owed("leased", is_leased=True),
        Owed("due"),
        dead("dead", "x"),
    )
    lease = only(store, target="leased").due_ms

    response = act(sign_in(), "retry", *Delivery.objects.using(store).all())

    (message,) = messages_of(response)
    assert message.startswith("1 delivery is due now. Left alone: ")
    for part in ("1 being tried at this moment", "1 due already", "1 dead or done (Replay is for those)"):
        assert part in message
    assert only(store, target="waits").due_ms <= upkeep_now(store)
    assert only(store, target="leased").due_ms == lease
    assert only(store, target="dead").state == State.DEAD


def test_replay_lets_be_owed_again_what_is_dead_or_done_and_says_what_it_left(store: str) -> None:
    put(an_event(), dead("dead", "x"), Owed("owed"), Owed("leased", is_leased=True))
    done(an_event(), "done")
    erased = put(an_event(), dead("erased", "x"))
    tables.events().filter(event_id=erased.id).update(payload=None)

    response = act(sign_in(), "replay", *Delivery.objects.using(store).all())

    (message,) = messages_of(response)
    assert message.startswith("2 deliveries are owed again. Left alone: ")
    for part in (
        "1 being tried",
        "1 still owed (Retry is for those)",
        "1 without a payload, which was erased",
    ):
        assert part in message
    assert (only(store, target="dead").state, only(store, target="dead").attempts) == (State.OWED, 0)
    assert only(store, target="done").state == State.OWED
    assert only(store, target="erased").state == State.DEAD


def test_discard_asks_first_and_removes_then(store: str) -> None:
    put(an_event(), dead("dead", "x"), Owed("owed"), Owed("leased", is_leased=True))
    done(an_event(), "done")
    client = sign_in()
    page = act(client, "discard", *Delivery.objects.using(store).all())

    text = text_of(page)
    assert "Remove 2 deliveries for good?" in text
    assert "1 being tried at this moment" in text
    assert "1 done" in text
    assert Delivery.objects.using(store).count() == 4

    (message,) = messages_of(confirm(client, page))

    assert message.startswith("2 deliveries were discarded. Left alone: ")
    assert {d.target for d in Delivery.objects.using(store).all()} == {"leased", "done"}


def test_all_that_a_filter_finds_can_be_chosen(store: str) -> None:
    put(an_event(), *(dead(f"dead-{n}", "x") for n in range(70)), Owed("owed", due_in_s=9))
    first = Delivery.objects.using(store).order_by("-pk").first()

    response = act(sign_in(), "replay", first, path=f"{DELIVERIES}?state=dead", select_across="1")

    assert messages_of(response) == ["70 deliveries are owed again."]


def test_what_was_stored_after_the_question_is_not_discarded(store: str) -> None:
    put(an_event(), *(dead(f"dead-{n}", "x") for n in range(70)))
    client = sign_in()
    path = f"{DELIVERIES}?state=dead"
    first = Delivery.objects.using(store).order_by("-pk").first()
    page = act(client, "discard", first, path=path, select_across="1")
    assert "Remove 70 deliveries" in text_of(page)
    put(an_event(), dead("later", "x"))

    response = confirm(client, page, path)

    assert messages_of(response) == ["70 deliveries were discarded."]
    assert only(store).target == "later"


def test_too_many_at_once_are_refused(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aevents.remedies.MOST", 2)
    put(an_event(), *(dead(f"dead-{n}", "x") for n in range(3)))

    for action in ("replay", "discard"):
        (message,) = messages_of(act(sign_in(), action, *Delivery.objects.using(store).all()))

        assert message.startswith("Nothing was changed: these are more than 2.")
    assert Delivery.objects.using(store).filter(state=State.DEAD).count() == 3


@pytest.mark.parametrize(
    ("owed", "buttons"),
    [
        (Owed("t", due_in_s=600), ["retry", "discard"]),
        (Owed("t"), ["discard"]),
        (Owed("t", is_leased=True), []),
        (dead("t", "x"), ["replay", "discard"]),
    ],
)
def test_the_page_of_a_delivery_has_a_button_for_what_can_be_done(
    store: str, owed: Owed, buttons: list[str]
) -> None:
    put(an_event(), owed)
    path = f"{DELIVERIES}{only(store).pk}/change/"

    page = sign_in().get(path).content.decode()

    assert re.findall(r'name="action" value="(\w+)"', page) == buttons
    assert not re.findall(r'name="action"', sign_in(*LOOK).get(path).content.decode())


def test_a_button_does_it_and_shows_the_event(store: str) -> None:
    put(an_event(id="a+b &c"), dead("payments", "x"))
    put(an_event(), dead("orders", "x"))
    client = sign_in()
    page = client.get(f"{DELIVERIES}{only(store, target='payments').pk}/change/").content.decode()
    found = re.search(r'action="([^"]+)" class="aevents-remedies"', page)
    assert found

    response = client.post(
        found[1], {"_selected_action": only(store, target="payments").pk, "action": "replay"}, follow=True
    )

    assert messages_of(response) == ["1 delivery is owed again."]
    assert [row.target for row in response.context["cl"].result_list] == ["payments"]


def test_erase_asks_first_and_leaves_no_payload(store: str) -> None:
    event = put(an_event(), dead("payments", "x"), Owed("orders", is_leased=True))
    stored = tables.events().get(event_id=event.id)
    client = sign_in()
    page = act(client, "erase", stored, path=EVENTS)
    assert "Erase the payload of 1 event for good" in text_of(page)
    assert tables.events().get().payload is not None

    (message,) = messages_of(confirm(client, page, EVENTS))

    assert message.startswith("The payload of 1 event was erased, and 1 delivery discarded.")
    assert "being tried at this moment: that goes on" in message
    assert tables.events().get().payload is None


def test_a_target_is_paused_and_resumed(store: str) -> None:
    put(an_event(), Owed("payments"), Owed("orders"))
    client = sign_in()

    response = act(client, "pause", *Delivery.objects.using(store).all())
    assert messages_of(response)[0].startswith("Paused: orders, payments.")
    assert "payments" in text_of(client.get(PAUSES))

    response = act(client, "resume", Pause.objects.using(store).get(target="orders"), path=PAUSES)
    assert messages_of(response) == ["Resumed: orders."]
    assert [pause.target for pause in Pause.objects.using(store).all()] == ["payments"]


# Where there is no store


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
@pytest.mark.parametrize("path", [DELIVERIES, EVENTS, PAUSES])
def test_without_a_store_the_page_says_so(settings: Any, path: str) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "STORE": None}

    response = sign_in().get(path)

    assert "AEVENTS['STORE'] is None" in messages_of(response)[0]
    assert list(response.context["cl"].result_list) == []


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_without_the_tables_it_says_how_to_make_them(settings: Any) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "STORE": "people"}

    response = sign_in().get(DELIVERIES, follow=True)

    assert "In the database 'people', the tables of aevents are missing" in messages_of(response)[0]
    assert "manage.py migrate" in messages_of(response)[0]


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_the_project_passes_the_checks_of_the_admin() -> None:
    from django.contrib import admin

    from aevents.admin import DeliveryAdmin, EventAdmin, PauseAdmin

    found = [admin.site.get_model_admin(model) for model in (Delivery, StoredEvent, Pause)]

    assert [type(each) for each in found] == [DeliveryAdmin, EventAdmin, PauseAdmin]
    assert [error for each in found for error in each.check()] == []


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_the_docs_name_every_action_with_its_permission() -> None:
    page = Page(DOCS / "admin.md")
    told = {(row[0], row[3].strip("`")) for row in page.tables()[0]}

    assert {name for name, _ in told} == {"Retry", "Replay", "Discard", "Pause", "Resume", "Erase"}
    for name, permission in told:
        upkeep.pause(OUT, "reports")
        put(an_event(), Owed("payments"))
        client = sign_in(*LOOK, permission.removeprefix("aevents."))
        assert name.lower() in set[str]().union(
            *(offered(client, path) for path in (DELIVERIES, EVENTS, PAUSES))
        )
