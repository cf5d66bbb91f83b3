"""The payload's JSON: any object the caller has in, exact UTF-8 bytes out, and back.

Takes what `django.core.serializers.json.DjangoJSONEncoder` takes, in the same notation.
"""

from __future__ import annotations

import enum
import json
import re
from itertools import accumulate, count
from operator import sub
from typing import Any

import orjson
from django.core.serializers.json import DjangoJSONEncoder

_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
# orjson reads an integer of more than 64 bits as a float: such bodies go through the slower parser.
_LONG_NUMBER = re.compile(rb"\d{19}")
_IN_STEPS, _TWO_STEPS = 9, re.compile(rb"\d\d")  # of which any such number has two in a row
_WALKED = frozenset({dict, list, int})
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_ALL_ELSE = bytes(set(range(256)) - set(b'[]{}"'))


class _Encoder(DjangoJSONEncoder):
    """Django's, with what orjson takes of itself: whether a payload passes hangs on no other value."""

    def default(self, o: Any) -> Any:
        return o.value if isinstance(o, enum.Enum) else super().default(o)


_django = _Encoder()


def encode(payload: Any) -> bytes:
    """Return `payload` as JSON; raises `ValueError` or `TypeError` where JSON cannot hold it."""
    try:
        data = orjson.dumps(payload, _default, _OPTIONS)
    except TypeError as error:
        # Long integers, and keys of a subclass of str: orjson takes neither.
        if "64-bit" not in str(error) and "key must be str" not in str(error):
            raise TypeError(_reason(error)) from error
        return _encode_slowly(payload)
    # orjson writes NaN and the infinities as null: only a null makes a second look necessary.
    if b"null" in data:
        json.dumps(payload, cls=_Encoder, allow_nan=False)
    # A copy: orjson's own bytes keep all the room they grew in, ten times their size and 4 KiB at
    # the least, and thousands of them may wait.
    return bytes(memoryview(data))


def encode_anew(value: Any) -> bytes:
    """Return as JSON a value that `decode` has read: as `encode` would, in a fraction of its time."""
    try:
        data = orjson.dumps(value)
    except TypeError as error:
        if "64-bit" not in str(error):
            raise
        data = orjson.dumps(_long_apart(value))
    return bytes(memoryview(data))


def decode(data: bytes) -> Any:
    """Return the value of strict JSON in strict UTF-8; raises `ValueError` for anything else."""
    value = orjson.loads(data)
    # One byte in nine says of most payloads that there is none, in a fifth of the time.
    if _TWO_STEPS.search(data[::_IN_STEPS]) and _LONG_NUMBER.search(data):
        return json.loads(data)
    return value


def nests_deeper_than(limit: int, data: bytes) -> bool:
    """Tell whether the JSON `data` nests lists and objects more than `limit` deep."""
    if data.count(b"[") + data.count(b"{") <= limit:
        return False
    # In the bytes alone: as objects half a million lists take a second, and fifty times their room.
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_BRACKETS, _ALL_ELSE)
    brackets = b"".join(bare.replace(b'""', b"").split(b'"')[::2])  # every other piece is text
    opened = accumulate(map(len, brackets.split(b"]")))  # up to each bracket that closes
    return bool(max(map(sub, opened, count())) > limit)


def _long_apart(value: Any) -> Any:
    """Return the value with pieces of JSON for the integers that orjson does not take."""
    if isinstance(value, dict):
        return {key: _long_apart(each) if type(each) in _WALKED else each for key, each in value.items()}
    if isinstance(value, list):
        return [_long_apart(each) if type(each) in _WALKED else each for each in value]
    return value if -(2**63) <= value < 2**64 else orjson.Fragment(str(value))


def _default(value: Any) -> Any:
    if isinstance(value, tuple):  # named tuples: a list, as the standard library has it
        return list(value)
    if isinstance(value, float):
        return float(value)
    return _django.default(value)


def _encode_slowly(payload: Any) -> bytes:
    _require_string_keys(payload)
    text = json.dumps(payload, cls=_Encoder, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    data = text.encode()
    orjson.loads(data)  # an integer beyond the range of a float is more than receivers read
    return data


def _require_string_keys(payload: Any) -> None:
    seen: set[int] = set()
    waiting = [payload]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        if isinstance(value, dict):
            seen.add(id(value))
            for key in value:
                if not isinstance(key, str):
                    raise TypeError(f"a key is of type {type(key).__name__}, not a string")
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            seen.add(id(value))
            waiting.extend(value)


def _reason(error: TypeError) -> str:
    cause = error.__cause__
    return f"{error}: {cause}" if cause is not None else str(error)
