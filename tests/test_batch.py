"""The batch on the wire: exact bytes out, whatever comes in is events, verdicts or a `MalformedMessage`."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aevents import batch, wire
from aevents.answer import ANSWER_BYTES, Answer, Receipt
from aevents.errors import DeliveryError, MalformedMessage, NotTogether, Refused, Unavailable
from aevents.event import Event, Message

patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NOON = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HEADERS = {"content-type": wire.BATCH}
MEMBERS = {"specversion": "1.0", "id": "1", "source": "/accounts", "type": "noted", "data": {"n": 1}}


def event(**changes: Any) -> Event:
    given: dict[str, Any] = {
        "id": "01a209d0-dd5c-7a2d-a79b-aca8fb69f8f6",
        "type": "user-created",
        "data": b'{"user_id":7}',
        "source": "accounts",
        "time": NOON,
    }
    return Event(**{**given, **changes})


def decoded(body: bytes | str, headers: dict[str, str] = HEADERS) -> list[Any]:
    return batch.decode(Message(headers, body.encode() if isinstance(body, str) else body))


def refusal(body: bytes | str, headers: dict[str, str] = HEADERS) -> MalformedMessage:
    with pytest.raises(MalformedMessage) as caught:
        decoded(body, headers)
    return caught.value


@pytest.fixture
def _no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows is cut, not parsed."""
    monkeypatch.setattr(batch, "_parse", None)


# --- out ---


def test_a_batch_is_an_array_of_structured_cloudevents() -> None:
    message = batch.encode([event(), event(id="2", key="k", cause="c", correlation="r", hops=3, trace=TRACE)])
    first = {
        "specversion": "1.0",
        "id": "01a209d0-dd5c-7a2d-a79b-aca8fb69f8f6",
        "source": "/accounts",
        "type": "user-created",
        "time": "2026-11-23T12:00:00.123456Z",
        "datacontenttype": "application/json",
        "datalength": 13,
        "data": {"user_id": 7},
    }
    more = {"partitionkey": "k", "causationid": "c", "correlationid": "r", "hops": 3, "traceparent": TRACE}
    assert json.loads(message.body) == [first, {**first, "id": "2", **more}]


def test_a_batch_has_an_id_of_its_own_and_no_header_of_a_single_event() -> None:
    one, other = batch.encode([event()]), batch.encode([event()])
    assert set(one.headers) == {"content-type", "webhook-id"}
    assert one.headers["content-type"] == "application/cloudevents-batch+json"
    assert len({one.headers["webhook-id"], other.headers["webhook-id"], event().id}) == 3


# --- in, as we write it ---


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
NAMES = st.text(st.characters(exclude_categories=["C", "Zl", "Zp", "Zs"]), min_size=1, max_size=20)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
EVENTS = st.builds(
    event,
    id=NAMES,
    type=NAMES,
    source=NAMES.filter(lambda name: not name.startswith("/")),
    key=st.none() | NAMES,
    data=JSON_VALUES.map(lambda value: json.dumps(value).encode()),
)


@pytest.mark.usefixtures("_no_parser")
@given(st.lists(EVENTS, max_size=5))
@example([event(key='","datalength":2,"data":{}}', id='"]},{'), event(data=b'[{"datalength":1,"data":2}]')])
@patiently
def test_what_was_written_is_cut_out_again_byte_for_byte(events: list[Event]) -> None:
    found = decoded(batch.encode(events).body)
    assert [replace(each, id_scope="") for each in found] == events


@pytest.mark.parametrize("data", [b'{ "n" : 1.0 }', b"[-0,1e5]", b'"\\u20ac"', b"12345678901234567890123"])
def test_a_payload_keeps_its_bytes_as_in_the_single_form(data: bytes) -> None:
    sent = event(data=data)
    (found,) = decoded(batch.encode([sent]).body)
    assert found.data == wire.decode(wire.encode(sent)).data == data


def test_what_only_looks_like_ours_is_parsed_as_json_has_it() -> None:
    ours = batch.encode([event(), event(id="2")]).body
    assert ours.count(b'"datalength":13') == 2
    for length in (b"12", b"14", b"0", b"999999999"):
        lying = ours.replace(b'"datalength":13', b'"datalength":' + length, 1)
        assert [e.data for e in decoded(lying)] == [b'{"user_id":7}'] * 2
    spaced = json.dumps(json.loads(ours), indent=1)
    assert [(e.id, e.data, e.time) for e in decoded(spaced)] == [
        (e.id, e.data, e.time) for e in decoded(ours)
    ]


# --- in, as others write it ---


@pytest.mark.parametrize("event", ['{"a":1,"datalength":02,"data":{}}', '{,"datalength":2,"data":{}}'])
def test_what_looks_like_ours_and_is_no_json_is_400_as_a_whole(event: str) -> None:
    # Found by the fuzzer: the length itself, and the comma before it, are parts of what must be JSON
    assert refusal(f"[{event}]").status == 400


def test_what_looks_like_ours_and_has_data_twice_is_refused_as_it_is_when_it_is_parsed() -> None:
    twice = '{"specversion":"1.0","id":"1","type":"a","data_base64":"MQ==","datalength":1,"data":1}'
    for body in (f"[{twice}]", f"[ {twice}]"):
        ((id, error),) = decoded(body)
        assert (id, error.status) == ("1", 400)


def test_a_foreign_batch_is_taken_with_the_least_that_cloudevents_ask_for() -> None:
    (found,) = decoded(json.dumps([MEMBERS]))
    assert (found.id, found.type, found.source, found.data) == ("1", "noted", "accounts", b'{"n":1}')
    assert (found.key, found.cause, found.hops, found.trace) == (None, None, 0, None)
    assert decoded("[]") == decoded(" [ ] ") == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"specversion": None}, "specversion"),
        ({"id": None}, "id must be"),
        ({"id": ""}, "id must be"),
        ({"id": 7}, "id must be"),
        ({"id": "x" * 201}, "id must be"),
        ({"id": "a\nb"}, "id must be"),
        ({"type": None}, "type must be"),
        ({"type": ["noted"]}, "type must be"),
        ({"datacontenttype": "text/plain"}, "datacontenttype"),
        ({"datacontenttype": 7}, "datacontenttype"),
        ({"data_base64": "e30="}, "both 'data' and"),
        ({"data": json.loads("[" * 65 + "]" * 65)}, "nests deeper"),
    ],
)
def test_a_malformed_event_has_its_own_verdict_and_the_others_are_taken(
    changes: dict[str, Any], says: str
) -> None:
    bad = {name: value for name, value in {**MEMBERS, **changes}.items() if value is not None}
    before, (id, error), after = decoded(json.dumps([MEMBERS, bad, {**MEMBERS, "id": "3"}]))
    assert (before.id, after.id) == ("1", "3")
    assert error.status == 400
    assert says in error.detail
    assert id == (bad["id"] if isinstance(bad.get("id"), str) else "")


def test_what_is_only_a_hint_never_refuses_an_event() -> None:
    odd = {"source": 7, "time": "noon", "partitionkey": "a\nb", "causationid": "x" * 257, "hops": -1}
    (found,) = decoded(json.dumps([{**MEMBERS, **odd, "traceparent": "00", "hops": "12345"}]))
    assert (found.source, found.key, found.cause, found.hops, found.trace) == ("", None, None, 0, None)
    assert found.time.tzinfo is UTC


@pytest.mark.parametrize(
    "body",
    ["", " ", "{", "{}", "7", "[", "[{]", "[{}", "[{},]", "[,]", "[]]", "[{}] x", b"[\xff]", "[" * 100_000],
)
def test_a_batch_that_is_no_array_is_400_as_a_whole(body: bytes | str) -> None:
    assert refusal(body).status == 400


def test_a_broken_end_of_what_we_write_is_400_as_a_whole() -> None:
    body = batch.encode([event(), event()]).body
    for broken in (body[:-1], body[:-2], body[:-1] + b",]", body + b"]", body[1:], body[:-1] + b"}]"):
        assert refusal(broken).status == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": wire.JSON}, 415),
        ({**HEADERS, "content-encoding": "gzip"}, 415),
        ({"content-type": f"{wire.BATCH}; charset=latin-1"}, 415),
    ],
)
def test_a_batch_in_another_dress_is_415(headers: dict[str, str], status: int) -> None:
    assert refusal("[]", headers).status == status
    assert decoded("[]", {"content-type": f"{wire.BATCH.upper()} ; charset=UTF-8"}) == []


def test_more_than_the_limits_allow_is_413(settings: Any) -> None:
    settings.AEVENTS = {"LIMITS": {"BATCH": 2, "BODY_BYTES": 1000}}
    assert len(decoded(json.dumps([MEMBERS] * 2))) == 2
    assert refusal(json.dumps([MEMBERS] * 3)).status == 413
    assert refusal("[" + " " * 1000 + "]").status == 413


@given(st.binary(max_size=60) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
@patiently
def test_whatever_arrives_is_decoded_or_refused(body: bytes) -> None:
    for each in (b"[" + body + b"]", body):
        with contextlib.suppress(MalformedMessage):
            decoded(each)


@given(st.lists(EVENTS, min_size=1, max_size=3), st.data())
@patiently
def test_a_bit_that_flipped_on_the_way_is_read_as_a_parser_reads_it(events: list[Event], data: Any) -> None:
    body = bytearray(batch.encode(events).body)
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        values = orjson.loads(body)
    except ValueError:
        values = None
    try:
        found = decoded(bytes(body))
    except MalformedMessage:
        assert not isinstance(values, list)
    else:
        assert len(found) == len(values)
        for one, value in zip(found, values, strict=True):
            if isinstance(one, Event):
                assert (one.id, one.type) == (value["id"], value["type"])
                assert orjson.loads(one.data) == value.get("data")


# --- the answer ---


def judged(body: Any, ids: tuple[str, ...] = ("1", "2"), status: int = 200) -> list[Any]:
    return batch.judge(
        status, body if body is None or isinstance(body, bytes) else orjson.dumps(body), "9", ids
    )


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'"ok"', {"events": []}, {"status": "handled"}])
def test_a_2xx_that_lists_nothing_says_that_all_were_taken(body: Any) -> None:
    assert judged(body) == [Receipt(), Receipt()]
    assert judged(body, status=202) == [Receipt(), Receipt()]


@pytest.mark.parametrize("body", [None, b"{", b"\xff", {"events": {}}])
def test_a_2xx_that_cannot_be_read_is_no_receipt_for_anything(body: Any) -> None:
    with pytest.raises(Unavailable):
        judged(body)


def test_each_event_has_the_verdict_that_names_it() -> None:
    first, second, third = judged(
        {
            "events": [
                {"id": "2", "status": 503, "detail": "busy\r\n", "retry_after_s": 2.5},
                {"id": "3", "status": 410},
                {"id": "unheard of", "status": 500},
                {"id": "1", "status": 202},
            ]
        },
        ("1", "2", "3"),
    )
    assert first == Receipt()
    assert (type(second), second.retry_after_s, second.answered) == (Unavailable, 2.5, True)
    assert str(second).isprintable()
    assert isinstance(third, Refused)


@pytest.mark.parametrize("wait", ["7", None, -1, True, [], 10**9])
def test_an_absurd_wish_to_wait_is_none(wait: Any) -> None:
    (found,) = judged({"events": [{"id": "1", "status": 400, "retry_after_s": wait}]}, ("1",))
    assert isinstance(found, DeliveryError)
    assert found.retry_after_s == (3600.0 if wait == 10**9 else None)
    assert (found.slowly, found.rejected) == (True, True)


def test_verdicts_that_are_none_are_passed_over() -> None:
    odd = [7, None, {}, {"id": 1, "status": 500}, {"id": "1", "status": "500"}, {"id": "1", "status": True}]
    assert judged({"events": odd}) == [Receipt(), Receipt()]


@pytest.mark.parametrize("status", [400, 404, 413, 415])
def test_a_refusal_of_the_whole_is_no_try(status: int) -> None:
    with pytest.raises(NotTogether):
        judged(b"", status=status)


@pytest.mark.parametrize("status", [302, 401, 429, 500, 503])
def test_any_other_answer_is_said_of_all(status: int) -> None:
    with pytest.raises(Unavailable) as caught:
        judged(b"", status=status)
    assert caught.value.retry_after_s == 9.0


def test_the_answer_lists_only_what_was_not_simply_taken() -> None:
    failed = Answer(503, {"status": "failed", "detail": "x" * 300}, {"retry-after": "3"})
    verdicts = [batch.verdict("1", Answer(202, {"status": "stored"})), batch.verdict("2", failed)]
    assert verdicts[0] is None
    assert batch.answer(verdicts).content == {
        "events": [{"id": "2", "status": 503, "detail": "x" * 100, "retry_after_s": 3.0}]
    }


def test_the_answer_to_a_full_batch_is_no_longer_than_what_is_read_of_one() -> None:
    failed = Answer(503, {"detail": "€" * 300}, {"retry-after": "3"})
    answer = batch.answer([batch.verdict(event().id, failed) for _ in range(256)])
    assert len(answer.body) < ANSWER_BYTES
    assert len(answer.content["events"]) == 256
