"""The event itself: its ids, its payload, and what may be a type."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aevents.event import Event, Message, derived_id, is_event_type, new_id

EVENT = Event("id", "user-created", b'{"user":{"id":7}}', "accounts", datetime(2026, 1, 2, tzinfo=UTC))


# The envelope


def test_the_payload_is_decoded_anew_at_each_access() -> None:
    first = EVENT.payload
    first["user"]["id"] = 8

    assert EVENT.payload == {"user": {"id": 7}}
    assert EVENT.payload is not EVENT.payload


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        EVENT.type = "other"  # type: ignore[misc]  # that is the point
    with pytest.raises((AttributeError, TypeError)):
        EVENT.other = 1  # type: ignore[attr-defined]  # that is the point
    with pytest.raises(FrozenInstanceError):
        Message({}, b"").body = b"x"  # type: ignore[misc]  # that is the point


def test_events_are_compared_by_what_they_say_and_may_be_kept_in_sets() -> None:
    assert replace(EVENT) == EVENT
    assert replace(EVENT, id="other") != EVENT
    assert {EVENT, replace(EVENT)} == {EVENT}


def test_what_stands_alone_has_no_family() -> None:
    assert (EVENT.key, EVENT.cause, EVENT.correlation, EVENT.hops, EVENT.trace, EVENT.attempt) == (
        *[None] * 3,
        0,
        None,
        1,
    )


# Types


@pytest.mark.parametrize(
    "value", ["u", "user-created", "user_created.v2", "x" * 200, "größe ✓", "with space", "*", "/", "7"]
)
def test_a_printable_string_of_1_to_200_characters_is_a_type(value: str) -> None:
    assert is_event_type(value)


class Text(str):
    """What Django's `TextChoices` and the like are made of."""


def test_a_subclass_of_str_is_a_type_too() -> None:
    assert is_event_type(Text("user-created"))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x" * 201,
        "a\n",
        "\r",
        "\t",
        "\0",
        "\x1b[31m",
        "\x7f",
        "\x9b",
        "\u2028",
        "\u202e",
        "\ufeff",
        "\ud800",
        "\xa0",
        b"user-created",
        None,
        7,
        ["user-created"],
    ],
)
def test_anything_else_is_no_type(value: Any) -> None:
    assert not is_event_type(value)


# Ids


def test_an_id_is_a_uuid_7_of_this_moment() -> None:
    before = time.time_ns() // 1_000_000
    value = new_id()
    after = time.time_ns() // 1_000_000
    parsed = uuid.UUID(value)

    assert str(parsed) == value
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert before <= parsed.int >> 80 <= after


def test_ids_sort_by_time() -> None:
    first = new_id()
    began = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 <= began:
        pass

    assert first < new_id()


def test_ids_of_many_threads_are_all_different() -> None:
    made: list[list[str]] = []

    def make() -> None:
        made.append([new_id() for _ in range(2000)])

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({value for some in made for value in some}) == 16_000


@pytest.mark.parametrize("fork", ["os.fork", "ctypes.PyDLL(None).fork"], ids=["by Python", "in C"])
def test_a_forked_child_makes_other_ids_than_its_parent(fork: str) -> None:
    # In a process of its own: this one has threads, which is no state to fork in. In C, as uWSGI does it,
    # no hook of Python's is called.
    code = f"""
import ctypes, os
from aevents.event import new_id
new_id()  # so that random bytes are in store
child = {fork}()
if child:
    os.waitpid(child, 0)  # so that they print one after the other
for _ in range(300):
    print(new_id())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    # The milliseconds may differ anyhow: the random ends must too.
    assert len({line[-12:] for line in done.stdout.split()}) == 600


def test_a_derived_id_is_a_uuid_8_and_always_the_same() -> None:
    value = derived_id("parent", "shop.events.pack", "packed", 0)
    parsed = uuid.UUID(value)

    assert str(parsed) == value
    assert (parsed.version, parsed.variant) == (8, uuid.RFC_4122)
    # Pinned: another version that made others would let followers run twice.
    assert value == "8cb86ffb-2060-8439-979c-98690bafb23a"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.text(), st.text(), st.text(), st.integers(0, 99)), unique=True, max_size=20))
def test_derived_ids_differ_whenever_anything_differs(parts: list[tuple[str, str, str, int]]) -> None:
    # No part may hold the character between them; ids, names and types never do.
    parts = [part for part in parts if not any("\0" in text for text in part[:3])]

    assert len({derived_id(*part) for part in parts}) == len(parts)
