"""Standard Webhooks v1: keys and a message in, its signature out; and a message in, who signed it out.

What is signed is `id.timestamp.body` (https://www.standardwebhooks.com, version 1.0.0) and nothing else:
every other header is a hint.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import itertools
import re
import secrets
import time
from collections.abc import Iterable, Sequence

from aevents.errors import MalformedMessage
from aevents.event import Message

PREFIX = "whsec_"
MIN_BYTES, MAX_BYTES = 24, 64  # as the specification has it
TOLERANCE_S = 300  # how far a try's own time may be from ours, either way
MAX_LOOKED_AT = 16  # signatures of one message
MAX_KEYS = 16  # tried for one message of any size
MAX_HASHED_BYTES = 16 * 1024 * 1024  # for one message that is tried with more keys than that

_VERSION = "v1,"
_TIMESTAMP = re.compile(r"[0-9]{1,12}")  # no sign, no space, no other alphabet's digits


def new_secret() -> str:
    """Return a new secret: `whsec_` and 32 random bytes in base64."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def key_of(secret: object) -> bytes:
    """Return the key that a secret holds; raises `ValueError`, whose text never repeats it."""
    if not isinstance(secret, str):
        raise ValueError(f"it is a {type(secret).__name__}, not a string")
    if not secret.startswith(PREFIX):
        raise ValueError(f"it does not begin with {PREFIX!r}")
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX).encode(), validate=True)
    except (ValueError, binascii.Error):
        raise ValueError(f"what follows {PREFIX!r} is not base64") from None
    if not MIN_BYTES <= len(key) <= MAX_BYTES:
        raise ValueError(f"it holds {len(key)} bytes, not {MIN_BYTES} to {MAX_BYTES}")
    return key


def sign(keys: Sequence[bytes], id: str, timestamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature`: one signature for each key, in their order."""
    signed = _signed(id, str(timestamp), body)
    return " ".join([_VERSION + _of(key, signed).decode() for key in keys])


def verify(message: Message, keys: Iterable[tuple[str, bytes]], *, of_any_time: bool = False) -> str:
    """Return the name that stands beside the key that signed `message`.

    Raises `MalformedMessage` with 401 where none of them did, or it is not of these five minutes
    (`of_any_time`: of whatever time, for what waited in a broker): bytes
    compared in constant time, at most 16 signatures of those that the message has. Whoever can sign nothing
    costs no more than 16 MiB of hashing: the first 16 keys are tried, and more while the body is small.
    """
    id = message.headers.get("webhook-id", "")
    timestamp = message.headers.get("webhook-timestamp", "")
    if not id or "." in id:  # which would let parts of the signed text change places
        raise MalformedMessage(401, "A signed event needs a webhook-id, without a dot.")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise MalformedMessage(401, "webhook-timestamp must be whole seconds since 1970.")
    apart_s = time.time() - int(timestamp)
    if abs(apart_s) > TOLERANCE_S and not of_any_time:
        way = "behind" if apart_s > 0 else "ahead of"
        raise MalformedMessage(
            401,
            f"webhook-timestamp is {abs(apart_s):.0f} s {way} this service's clock:"
            f" more than {TOLERANCE_S} s. Does a clock go wrong?",
        )
    given = _given(message.headers.get("webhook-signature", ""))
    untried = iter(keys)
    if given:
        signed = _signed(id, timestamp, message.body)
        for name, key in itertools.islice(untried, max(MAX_KEYS, MAX_HASHED_BYTES // len(signed))):
            expected = _of(key, signed)
            for each in given:
                if hmac.compare_digest(expected, each):
                    return name
        if next(untried, None) is not None:
            raise MalformedMessage(
                401,
                "webhook-signature is by none of the AEVENTS['SECRETS'] that are tried for a body this large."
                " Name the sender in ce-source: its secrets are tried first.",
            )
    raise MalformedMessage(401, "webhook-signature is by none of this service's AEVENTS['SECRETS'].")


def _given(header: str) -> list[bytes]:
    listed = header.split(" ", MAX_LOOKED_AT)[:MAX_LOOKED_AT]
    return [
        each.removeprefix(_VERSION).encode("utf-8", "replace") for each in listed if each.startswith(_VERSION)
    ]


def _signed(id: str, timestamp: str, body: bytes) -> bytes:
    return b"%b.%b.%b" % (id.encode("utf-8", "replace"), timestamp.encode(), body)


def _of(key: bytes, signed: bytes) -> bytes:
    return binascii.b2a_base64(hmac.digest(key, signed, "sha256"), newline=False)
