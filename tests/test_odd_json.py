"""What odd JSON becomes: the table on the page on the wire, sent in each form and by each way in."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

import pytest

from aevents import cloudevents, subscribe_to, wire
from aevents.event import new_id
from tests.pages import DOCS, Page
from tests.project.clients import JSON, WAYS, ask

AEVENTS = {"SERVICE": "tests", "UNSIGNED": "accept", "ENABLED": True, "STORE": None}
ROWS = {row[0]: row[1] for row in Page(DOCS / "wire.md").tables()[2]}
ENCODINGS = {
    "BOM": "utf-8-sig",
    "UTF-16": "utf-16",
    "Latin-1": "latin-1",
}
_OUR_HEAD = re.compile(r'\{"event_type":"a(?:\\u0000)?","payload":')


def meant(cell: str) -> str:
    """Return what a cell stands for, without its quotes."""
    text = re.sub(r"<(\S) × (\d+)>", lambda found: found[1] * int(found[2]), cell[1:-1])
    return "" if text == "<nothing>" else text


def sent(cell: str) -> bytes:
    found = re.match(r"<([\w-]+)>(?=\{)", meant(cell))
    if found is None:
        return meant(cell).encode()
    return codecs.encode(meant(cell)[found.end() :], ENCODINGS[found[1]])


@pytest.fixture
def payloads(settings: Any) -> list[Any]:
    settings.AEVENTS = AEVENTS
    got: list[Any] = []
    for event_type in ("a", "b"):
        subscribe_to(event_type, lambda payload: got.append(payload), name=event_type)
    return got


def compare(becomes: str, status: int, payloads: list[Any]) -> None:
    if becomes == "400":
        assert (status, payloads) == (400, [])
    else:
        assert status == 200
        # As text: 1 is not 1.0 there
        assert [json.dumps(each) for each in payloads] == [json.dumps(json.loads(meant(becomes)))]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("body", ROWS)
def test_the_page_says_what_a_body_becomes(way: str, body: str, payloads: list[Any]) -> None:
    compare(ROWS[body], ask(way, sent(body), JSON).status, payloads)


@pytest.mark.parametrize("form", [cloudevents.STRUCTURED, wire.BATCH])
@pytest.mark.parametrize("body", [body for body in ROWS if _OUR_HEAD.search(body)])
def test_the_data_of_a_cloudevent_becomes_the_same(form: str, body: str, payloads: list[Any]) -> None:
    text = sent(body)
    for name, other in ((b'"event_type"', b'"type"'), (b'"payload"', b'"data"')):
        text = text.replace(name, other)
    head = b'{"specversion":"1.0","id":"%b","type"' % new_id().encode()
    text = text.replace(b'{"type"', head, 1)
    if body == '`{"event_type":"a"}`':
        return  # an event without data is one
    reply = ask(
        "asgi", text if form == cloudevents.STRUCTURED else b"[" + text + b"]", {"content-type": form}
    )
    verdicts = reply.content.get("events", [])
    compare(ROWS[body], verdicts[0]["status"] if verdicts else reply.status, payloads)


def test_the_page_names_each_kind() -> None:
    assert len(ROWS) >= 28
    assert set(ROWS.values()) >= {"400", "`null`"}
    assert sent("`<[ × 3>`") == b"[[["
    assert sent('`<UTF-16>{"ü"}`') == '{"ü"}'.encode("utf-16")
