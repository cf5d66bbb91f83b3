"""The payload's JSON: what goes in, in which notation, and that the same comes out."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections import OrderedDict, defaultdict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
import pytest
from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import IntegerChoices, TextChoices
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aevents import payload

# A busy machine is slow, and that is no fault of an example.
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
Point = namedtuple("Point", "x y")


class Color(TextChoices):
    RED = "red"


class Size(IntegerChoices):
    BIG = 3


class Plain(enum.Enum):
    A = "a"


class Text(str):
    pass


class Real(float):
    pass


class Whole(int):
    pass


@dataclasses.dataclass
class Record:
    a: int


PLUS_TWO = timezone(timedelta(hours=2))
DJANGO_TAKES = {
    "a datetime without zone": datetime(2026, 11, 23, 8, 9, 10),
    "a datetime with microseconds": datetime(2026, 11, 23, 8, 9, 10, 123456),
    "a datetime in UTC": datetime(2026, 11, 23, 8, 9, 10, 123456, tzinfo=UTC),
    "a datetime in a zone": datetime(2026, 11, 23, 8, 9, 10, tzinfo=PLUS_TWO),
    "a date": date(2026, 11, 23),
    "a time": time(8, 9, 10),
    "a time with microseconds": time(8, 9, 10, 123456),
    "a timedelta": timedelta(days=2, hours=3, microseconds=5),
    "a negative timedelta": -timedelta(minutes=1),
    "a decimal": Decimal("12.3400"),
    "a decimal that is no number": Decimal("NaN"),
    "a uuid": UUID("01a209d0-dd5c-7a2d-a79b-aca8fb69f8f6"),
    "a lazy string": lazystr("later"),
    "a safe string": mark_safe("<b>"),
    "a string subclass": Text("text"),
    "a float subclass": Real(1.5),
    "an int subclass": Whole(7),
    "text choices": Color.RED,
    "integer choices": Size.BIG,
    "a named tuple": Point(1, 2.5),
    "a named tuple in a named tuple": Point(Point(1, None), [Point(2, 3)]),
    "a tuple": (1, "two", None),
    "an ordered dict": OrderedDict(b=1, a=2),
    "a defaultdict": defaultdict(list, a=[1]),
    "unicode": 'Grüße \N{PILE OF POO} \x00 \u2028 " \\',
    "the largest signed integer": 2**63 - 1,
    "the largest unsigned integer": 2**64 - 1,
    "an integer beyond 64 bits": 2**64,
    "a negative integer beyond 64 bits": -(2**63) - 1,
    "an integer of 309 digits": 10**308,
    "numbers": [0, -1, 0.1, -0.0, 1e16, 1e-7, 5e-324, 1.7976931348623157e308],
    "constants": [True, False, None],
    "nothing": {},
}


@pytest.mark.parametrize("value", DJANGO_TAKES.values(), ids=DJANGO_TAKES.keys())
@pytest.mark.parametrize("beside", [{}, {"b": None}, {"b": 2**70}], ids=["alone", "null", "long"])
def test_what_django_s_encoder_takes_is_taken_in_the_same_notation(
    value: Any, beside: dict[str, Any]
) -> None:
    # Given a payload, alone or beside values that need a second look or the slower encoder
    given_payload = {"a": value, **beside}
    # When it is encoded
    data = payload.encode(given_payload)
    # Then it reads as Django's own encoding does
    django_s = json.dumps(given_payload, cls=DjangoJSONEncoder)
    assert json.loads(data) == json.loads(django_s)
    assert payload.decode(data) == json.loads(django_s)


def test_the_bytes_are_compact_utf_8() -> None:
    assert payload.encode({"name": "Grüße", "n": [1, 2]}) == '{"name":"Grüße","n":[1,2]}'.encode()
    assert payload.encode({"name": "Grüße", "n": [1, 2**64]}) == (
        '{"name":"Grüße","n":[1,18446744073709551616]}'.encode()
    )


@pytest.mark.parametrize("key", [Text("key"), mark_safe("key"), Color.RED], ids=repr)
def test_a_key_may_be_of_a_subclass_of_str(key: str) -> None:
    assert payload.decode(payload.encode({key: 1})) == {str(key): 1}


@pytest.mark.parametrize("beside", [{}, {"b": None}, {"b": 2**70}], ids=["alone", "null", "long"])
@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        Real("nan"),
        [{"deep": (1, math.inf)}],
        {1, 2},
        b"bytes",
        object(),
        Record(1),
        range(3),
        1j,
        time(8, tzinfo=UTC),
        "\ud800",
        {"\udfff": 1},
        {1: 2},
        {None: 1},
        {True: 1},
        {("a",): 1},
        {UUID(int=1): 1},
        {date(2026, 1, 1): 1},
        {lazystr("key"): 1},
        2 * 10**308,
        -(10**400),
        10**5000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_hold_is_refused_whatever_stands_beside_it(
    value: Any, beside: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValueError)):
        payload.encode({"a": value, **beside})


@pytest.mark.parametrize("beside", [{}, {"b": 2**70}], ids=["alone", "long"])
def test_a_plain_enum_is_its_value_whatever_stands_beside_it(beside: dict[str, Any]) -> None:
    assert payload.decode(payload.encode({"a": Plain.A, "n": None, **beside}))["a"] == "a"


@pytest.mark.parametrize("beside", [{}, {"b": None}, {"b": 2**70}], ids=["alone", "null", "long"])
def test_a_circle_is_refused(beside: dict[str, Any]) -> None:
    circle: dict[str, Any] = {"a": [1], **beside}
    circle["a"].append(circle)
    with pytest.raises((TypeError, ValueError, RecursionError)):
        payload.encode(circle)


@pytest.mark.parametrize("leaf", [1, None, 2**70], ids=["small", "null", "long"])
def test_what_nests_without_end_is_refused_and_crashes_nothing(leaf: Any) -> None:
    deep: Any = leaf
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises((TypeError, ValueError, RecursionError)):
        payload.encode({"a": deep})


def test_the_reason_names_what_is_wrong() -> None:
    with pytest.raises(TypeError, match="object"):
        payload.encode({"a": object()})
    with pytest.raises(TypeError, match="a key is of type int, not a string"):
        payload.encode({"a": {7: 1}})
    with pytest.raises(TypeError, match="timezone-aware times"):
        payload.encode({"a": time(8, tzinfo=UTC)})
    with pytest.raises(ValueError, match="JSON compliant"):
        payload.encode({"a": math.nan})


# What is relied on of orjson: a version that does otherwise must be looked at, not only installed


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1], ids=["positive", "negative"])
def test_orjson_says_of_a_long_integer_that_it_has_more_than_64_bits(value: int) -> None:
    with pytest.raises(TypeError, match="64-bit"):
        orjson.dumps({"a": value}, payload._default, payload._OPTIONS)


@pytest.mark.parametrize("key", [Text("a"), mark_safe("a"), Color.RED, 7, None], ids=repr)
def test_orjson_says_of_a_key_that_is_no_plain_string_that_it_must_be_one(key: Any) -> None:
    with pytest.raises(TypeError, match="key must be str"):
        orjson.dumps({key: 1}, payload._default, payload._OPTIONS)


@pytest.mark.parametrize("value", [object(), {1, 2}, time(8, tzinfo=UTC)], ids=lambda v: type(v).__name__)
def test_orjson_says_neither_of_anything_else_and_names_the_encoder_s_error_as_cause(value: Any) -> None:
    with pytest.raises(TypeError) as raised:
        orjson.dumps({"a": value}, payload._default, payload._OPTIONS)

    assert "64-bit" not in str(raised.value)
    assert "key must be str" not in str(raised.value)
    assert isinstance(raised.value.__cause__, (TypeError, ValueError))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_orjson_writes_what_is_no_number_as_null(value: float) -> None:
    assert orjson.dumps([value]) == b"[null]"


def test_orjson_asks_for_named_tuples_datetimes_dataclasses_and_subclasses_of_float() -> None:
    asked = []

    def default(value: Any) -> str:
        asked.append(value)
        return "asked"

    values = [Point(1, 2), datetime(2026, 1, 1), date(2026, 1, 1), time(8), Record(1), Real(1.5)]
    orjson.dumps(values, default, payload._OPTIONS)
    assert asked == values


def test_orjson_reads_an_integer_of_more_than_64_bits_as_a_float_and_refuses_one_beyond_floats() -> None:
    shorter, longer = orjson.loads(b"[18446744073709551615,18446744073709551616]")
    assert (type(shorter), type(longer)) == (int, float)
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(b"1" * 400)
    assert issubclass(orjson.JSONDecodeError, ValueError)
    assert issubclass(orjson.JSONEncodeError, TypeError)


def test_null_is_kept_and_the_word_null_is_only_text() -> None:
    assert payload.encode({"a": None, "null": "null"}) == b'{"a":null,"null":"null"}'


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**300), max_value=10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@patiently
@given(values)
def test_what_is_encoded_comes_back_exactly(value: Any) -> None:
    data = payload.encode(value)
    back = payload.decode(data)
    assert back == value
    assert repr(back) == repr(value)  # 1 and 1.0 and True are equal, and not the same
    assert payload.encode(back) == data


@patiently
@given(values)
def test_decoding_reads_as_the_standard_library_does(value: Any) -> None:
    text = json.dumps(value, indent=1).encode()
    assert repr(payload.decode(text)) == repr(json.loads(text))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"nul",
        b"NaN",
        b"Infinity",
        b"[1e999]",
        b"1" * 400,
        b"{'a': 1}",
        b'{"a":1,}',
        b"[1] 2",
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-16-le"),
        '{"a":1}'.encode("utf-32"),
        '"ü"'.encode("latin-1"),
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'"\n"',
        b"0123",
        b"\x1f\x8b\x08",
        b"NaN, 12345678901234567890123",
        b'["\\udc00", 12345678901234567890123]',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
    ids=lambda data: ascii(data)[:24],
)
def test_only_strict_json_in_strict_utf_8_is_decoded(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        payload.decode(data)


def test_the_last_of_equal_keys_wins_with_either_parser() -> None:
    assert payload.decode(b'{"a":1,"a":2}') == {"a": 2}
    assert payload.decode(b'{"a":12345678901234567890123,"a":2}') == {"a": 2}


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_was_decoded_is_encoded_anew_as_it_was(value: Any) -> None:
    data = payload.encode(value)
    assert repr(payload.decode(payload.encode_anew(payload.decode(data)))) == repr(payload.decode(data))


def test_a_long_number_keeps_its_digits_wherever_it_stands() -> None:
    data = b'{"a":[1,123456789012345678901,{"b":-12345678901234567890}],"c":18446744073709551615}'
    assert payload.encode_anew(payload.decode(data)) == data


@pytest.mark.parametrize("data", [b"[[],[]]", b'[{"a":["]"]},{"b\\"]":[]}]', b'["[[[[",{}]', b'["\\\\",[]]'])
def test_brackets_in_texts_nest_nothing(data: bytes) -> None:
    assert payload.nests_deeper_than(depth(json.loads(data)) - 1, data)
    assert not payload.nests_deeper_than(depth(json.loads(data)), data)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


nests = st.recursive(
    st.sampled_from([1, "[[{{", None]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc["), inner, max_size=3),
    max_leaves=12,
)


@patiently
@given(nests, st.integers(min_value=1, max_value=8))
def test_the_nesting_is_measured_as_one_would_count_it(value: Any, limit: int) -> None:
    data = payload.encode(value)
    assert payload.nests_deeper_than(limit, data) is (depth(value) > limit)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["lists", "objects"])
def test_the_limit_itself_is_allowed_and_one_more_is_not(opening: bytes, closing: bytes) -> None:
    def nested(levels: int) -> bytes:
        return opening * levels + b"1" + closing * levels

    assert not payload.nests_deeper_than(64, nested(64))
    assert payload.nests_deeper_than(64, nested(65))
    assert payload.nests_deeper_than(64, nested(900))
