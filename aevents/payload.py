"""The payload's JSON: any object the caller has in, exact UTF-8 bytes out, and back.

Takes what `django.core.serializers.json.DjangoJSONEncoder` takes, in the same notation.
"""

from __future__ import annotations

import enum
import json
import re
from typing import Any

import orjson
from django.core.serializers.json import DjangoJSONEncoder

_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
# orjson reads an integer of more than 64 bits as a float: such bodies go through the slower parser.
_LONG_NUMBER = re.compile(rb"\d{19}")


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


def decode(data: bytes) -> Any:
    """Return the value of strict JSON in strict UTF-8; raises `ValueError` for anything else."""
    value = orjson.loads(data)
    if _LONG_NUMBER.search(data):
        return json.loads(data)
    return value


def nests_deeper_than(limit: int, data: bytes, value: Any = ...) -> bool:
    """Tell whether the JSON `data` nests lists and objects more than `limit` deep."""
    if data.count(b"[") + data.count(b"{") <= limit:
        return False
    level = [decode(data) if value is ... else value]
    for _ in range(int(limit)):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return False
    return True


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [child for child in value.values() if isinstance(child, (dict, list))]
    if isinstance(value, list):
        return [child for child in value if isinstance(child, (dict, list))]
    return []


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
                    raise TypeError(f"the key {key!r:.80} is not a string")
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            seen.add(id(value))
            waiting.extend(value)


def _reason(error: TypeError) -> str:
    cause = error.__cause__
    return f"{error}: {cause}" if cause is not None else str(error)
