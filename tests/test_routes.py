"""Who is told of an event: names, patterns and their unions, read live from the settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
from django.test import override_settings

from aevents import aemit, emit, routes, subscribe_to
from aevents.answer import Answer
from aevents.event import Message
from aevents.routes import destinations_of
from aevents.transports.base import Destination
from aevents.transports.memory import MemoryTransport

Configure = Callable[..., None]
#: What devops keeps for all services, for the dotted paths.
SERVICES = {
    "accounts": "https://accounts.internal/events/",
    "payments": "https://payments.internal/events/",
    "orders": {"URL": "https://orders.internal/events/"},
}
SUBSCRIPTIONS = {
    "user-created": ["payments", "orders"],
    "user-*": ["accounts"],
    "audit": ("accounts",),
}


@pytest.fixture(autouse=True)
def configure(settings: Any) -> Configure:
    """Set the maps, and what else a test wants, in place of all there was."""

    def set_keys(**keys: Any) -> None:
        settings.AEVENTS = {"SERVICES": SERVICES, "SUBSCRIPTIONS": SUBSCRIPTIONS, "ENABLED": True, **keys}

    set_keys()
    return set_keys


def names(event_type: str) -> list[str]:
    return [destination.name for destination in destinations_of(event_type)]


# Names and patterns


def test_an_exact_name_tells_the_services_it_lists() -> None:
    assert destinations_of("audit") == (Destination("accounts", "https://accounts.internal/events/"),)


def test_names_and_patterns_add_up() -> None:
    assert names("user-created") == ["payments", "orders", "accounts"]
    assert names("user-deleted") == ["accounts"]


def test_a_type_that_nothing_matches_tells_nobody() -> None:
    assert names("invoice-sent") == []


def test_a_service_is_told_once_however_often_it_matches(configure: Configure) -> None:
    configure(
        SUBSCRIPTIONS={
            "*": ["orders", "accounts"],
            "user-*": ["accounts", "payments", "accounts"],
            "user-created": ["payments"],
            "*-created": ["orders"],
        }
    )
    # The exact name's first, then the patterns' as they stand
    assert names("user-created") == ["payments", "orders", "accounts"]


@pytest.mark.parametrize(
    ("pattern", "matches", "matches_not"),
    [
        ("*", ["u", "user-created", "a b"], []),
        ("user-*", ["user-", "user-created", "user-a-b"], ["user", "a-user-created", "User-created"]),
        ("*-created", ["user-created", "-created"], ["user-created-again", "created"]),
        ("user-*-v*", ["user-created-v2", "user--v"], ["user-v2"]),
        ("a.b*", ["a.b", "a.bc"], ["axb"]),
        ("u[s]er-*", ["u[s]er-1"], ["user-1"]),
        ("(a|b)*", ["(a|b)c"], ["a", "b"]),
        ("größe-*", ["größe-xl"], ["grosse-xl"]),
        ("**", ["anything"], []),
    ],
)
def test_a_star_stands_for_any_run_of_characters_and_nothing_else_is_special(
    configure: Configure, pattern: str, matches: list[str], matches_not: list[str]
) -> None:
    configure(SUBSCRIPTIONS={pattern: ["accounts"]})

    assert [names(event_type) for event_type in matches] == [["accounts"]] * len(matches)
    assert [names(event_type) for event_type in matches_not] == [[]] * len(matches_not)


def test_names_may_stand_in_any_collection(configure: Configure) -> None:
    configure(SUBSCRIPTIONS=MappingProxyType({"a": ("accounts",), "b": frozenset({"orders"})}))

    assert names("a") == ["accounts"]
    assert names("b") == ["orders"]


# The devops objects


@pytest.mark.parametrize("service", ["accounts", "payments", "orders"])
def test_one_map_serves_all_services_and_only_service_differs(configure: Configure, service: str) -> None:
    configure(
        SERVICE=service,
        SERVICES=f"{__name__}.SERVICES",
        SUBSCRIPTIONS=f"{__name__}.SUBSCRIPTIONS",
    )
    found = {destination.name: destination.url for destination in destinations_of("user-created")}

    assert list(found) == ["payments", "orders", "accounts"]
    assert found.pop(service) == "local://"
    assert found == {name: f"https://{name}.internal/events/" for name in found}


def test_one_s_own_name_needs_no_url(configure: Configure) -> None:
    configure(SERVICE="reports", SUBSCRIPTIONS={"audit": ["reports"]})

    assert destinations_of("audit") == (Destination("reports", "local://"),)


def test_a_destination_does_not_show_the_password_in_its_url() -> None:
    assert "s3cret" not in repr(Destination("accounts", "https://me:s3cret@accounts/"))


# Mistakes: each stays alone and is told


def test_a_name_that_nobody_knows_fails_alone_and_aloud(
    configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    received = serve_memory("orders")
    configure(SERVICES={"orders": "memory://orders"}, SUBSCRIPTIONS={"audit": ["ordres", "orders"]})
    try:
        emission = emit("audit", {})
    finally:
        MemoryTransport.stop("orders")

    assert [(r.service, r.outcome) for r in emission.results] == [
        ("ordres", "failed"),
        ("orders", "delivered"),
    ]
    assert "'ordres' is not in AEVENTS['SERVICES']" in str(emission.results[0].error)
    assert not emission.ok
    assert len(received) == 1
    assert "'ordres' is not in AEVENTS['SERVICES']" in caplog.text


@pytest.mark.parametrize(
    "entry", [{}, {"FORMAT": "cloudevents"}, {"URL": None}, None, "", "no url", "ftp://payments/", 7]
)
def test_a_service_without_a_good_url_fails_alone_and_aloud(configure: Configure, entry: Any) -> None:
    received = serve_memory("orders")
    configure(
        SERVICES={"orders": "memory://orders", "payments": entry},
        SUBSCRIPTIONS={"audit": ["payments", "orders"], "other": ["orders"]},
    )
    try:
        emission = emit("audit", {})
        assert emit("other", {}).delivered
    finally:
        MemoryTransport.stop("orders")

    assert [(r.service, r.outcome) for r in emission.results] == [
        ("payments", "failed"),
        ("orders", "delivered"),
    ]
    assert emission.results[0].error
    assert len(received) == 2


@pytest.mark.parametrize(
    "keys",
    [
        {"SUBSCRIPTIONS": "nowhere.SUBSCRIPTIONS"},
        {"SERVICES": f"{__name__}.NOTHING"},
        {"SERVICES": 7},
        {"SUBSCRIPTIONS": ["audit"]},
        {"SUBSCRIPTIONS": {"audit": None}},
        {"SUBSCRIPTIONS": {7: ["orders"]}},
    ],
    ids=str,
)
async def test_maps_that_cannot_be_read_are_told_in_the_emission_and_never_raised(
    configure: Configure, keys: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    configure(**keys)

    for emission in (emit("nothing", {}), await aemit("nothing", {})):
        assert not emission.ok
        assert emission.error
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2
    assert all(record.exc_info and record.stack_info for record in errors)


def serve_memory(name: str) -> list[Message]:
    received: list[Message] = []

    async def receive(message: Message) -> Answer:
        received.append(message)
        return Answer(200, {})

    MemoryTransport.serve(name, receive)
    return received


# Read live


def test_a_change_of_the_settings_is_seen_at_once() -> None:
    assert names("audit") == ["accounts"]
    with override_settings(AEVENTS={"SERVICES": SERVICES, "SUBSCRIPTIONS": {"audit": ["orders"]}}):
        assert names("audit") == ["orders"]
        with override_settings(AEVENTS={"SERVICES": SERVICES, "SUBSCRIPTIONS": {}}):
            assert names("audit") == []
        assert names("audit") == ["orders"]
    assert names("audit") == ["accounts"]


# Did you mean


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    "mistaken",
    ["user_created", "user.created", "User-Created", "USER_CREATED", "user-craeted", "userr-created"],
)
def test_an_unrouted_type_that_resembles_a_known_one_is_warned_of_once(
    configure: Configure, caplog: pytest.LogCaptureFixture, mistaken: str
) -> None:
    configure(SUBSCRIPTIONS={"user-created": ["orders"], "invoice-sent": ["orders"]})
    for _ in range(5):
        assert emit(mistaken, {}).ok

    expected = f"No service is subscribed to {mistaken!r}. Did you mean 'user-created'?"
    assert warnings_of(caplog) == [expected]
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.event_type == mistaken  # type: ignore[attr-defined]


def test_a_type_that_this_service_handles_itself_is_known_too(
    configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    configure(SUBSCRIPTIONS={})
    subscribe_to("user-created", lambda _: None, name="mine")
    emit("user_created", {})

    assert warnings_of(caplog) == ["No service is subscribed to 'user_created'. Did you mean 'user-created'?"]


@pytest.mark.parametrize(
    "event_type", ["invoice-sent", "user", "created", "x", "user-created-and-more-than-that"]
)
def test_an_unrouted_type_that_resembles_nothing_is_no_mistake(
    configure: Configure, caplog: pytest.LogCaptureFixture, event_type: str
) -> None:
    configure(SUBSCRIPTIONS={"user-created": ["orders"]})
    emit(event_type, {})

    assert warnings_of(caplog) == []


def test_a_routed_type_is_never_warned_of(configure: Configure, caplog: pytest.LogCaptureFixture) -> None:
    configure(
        SERVICE="shop",
        SUBSCRIPTIONS={
            "user-created": ["shop"],
            "user_created": ["shop"],
            "user.*": ["shop"],
            "user-createt": [],  # known, and meant for nobody
        },
    )
    for event_type in ("user-created", "user_created", "user.created", "user-createt"):
        assert emit(event_type, {}).ok

    assert warnings_of(caplog) == []


def test_a_change_of_the_settings_warns_anew(configure: Configure, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        configure(SUBSCRIPTIONS={"user-created": ["orders"]})
        emit("user_created", {})

    assert len(warnings_of(caplog)) == 2


def test_a_million_different_types_are_not_remembered(
    configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a name that somebody makes anew for each event, resembling a known one
    configure(SUBSCRIPTIONS={"user-0000-created": ["orders"], "kept-*": ["orders"]})
    for n in range(1, 9000):
        destinations_of(f"user-{n:04}-created")
        destinations_of(f"kept-{n}")
    # Then
    table = routes._current()
    assert len(table.found) <= 4096
    assert len(table.warned) <= 4096
    assert len(warnings_of(caplog)) <= 4096
    assert names("kept-9000") == ["orders"]
    assert names("user-0000-created") == ["orders"]
