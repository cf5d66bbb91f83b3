"""What makes refused messages one letter, or several. How they come back: `test_listening.py`."""

from __future__ import annotations

from typing import Any

import pytest

from aevents import cloudevents, letters
from aevents.event import Message

BINARY = {
    "content-type": "application/json",
    "ce-specversion": "1.0",
    "ce-type": "paid",
    "ce-source": "/till",
}


def letter(headers: dict[str, str], body: bytes = b"{}", **more: str) -> Any:
    return letters._letter("bus", Message({**headers, **more}, body))


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"webhook-id": "1"}, b"garbage"),
        ({**BINARY, "ce-id": "1"}, b"{}"),
        ({"content-type": cloudevents.STRUCTURED}, b'{"specversion":"1.0","id":"1"}'),
        ({"webhook-id": "\ud800"}, b""),
    ],
)
def test_the_same_message_is_one_letter_however_often_it_comes(headers: dict[str, str], body: bytes) -> None:
    assert letter(headers, body).id == letter(headers, body).id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"webhook-id": "1"}, {"webhook-id": "2"}),
        ({**BINARY, "ce-id": "1"}, {**BINARY, "ce-id": "2"}),
        ({**BINARY, "ce-id": "1"}, {**BINARY, "ce-id": "1", "ce-source": "/other"}),
        (BINARY, BINARY),
        ({}, {}),
    ],
    ids=lambda headers: str(headers.get("webhook-id", headers.get("ce-id"))),
)
def test_events_of_the_same_body_are_letters_of_their_own(one: dict[str, str], other: dict[str, str]) -> None:
    assert letter(one).id != letter(other).id
