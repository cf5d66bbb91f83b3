"""Signatures and keys: the published vector, what is refused, and whose secret tells whom."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aevents import aemit, keyring, routes, signature, wire
from aevents.errors import MalformedMessage
from aevents.event import Event, Message
from aevents.keyring import FLEET, Keyring
from aevents.receiver import receive
from aevents.settings import conf
from tests.test_wire import NOON

NOW = 1_700_000_000
# Our computation and that of the official Python SDK 1.1.0.
VECTOR_SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
VECTOR_ID = "0192f0c1-7a3e-7cc0-8d35-1f2a6b9c0d11"
VECTOR_BODY = '{"event_type":"user.created","payload":{"id":1,"name":"Zoë"}}'.encode()
VECTOR = "v1,wSJMWUSr7zZytVEt9yPRnljsxBLyREOtWNdZg7ZWDW8="
KEY = bytes(range(32))
OTHER, THIRD = b"o" * 32, b"t" * 24


def secret_of(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of this service, in its only place."""
    now = [float(NOW)]
    monkeypatch.setattr(signature, "time", SimpleNamespace(time=lambda: now[0]))
    return now


def message(value: str | None = VECTOR, **changes: Any) -> Message:
    headers = {
        "webhook-id": VECTOR_ID,
        "webhook-timestamp": str(NOW),
        "webhook-signature": value,
        **{name.replace("_", "-"): text for name, text in changes.items() if name != "body"},
    }
    body = changes.get("body", VECTOR_BODY)
    return Message({name: text for name, text in headers.items() if text is not None}, body)


def verified(sent: Message, keys: Sequence[tuple[str, bytes]] = (("payments", KEY),)) -> str:
    return signature.verify(sent, keys)


def refusal(sent: Message, keys: Sequence[tuple[str, bytes]] = (("payments", KEY),)) -> str:
    with pytest.raises(MalformedMessage) as caught:
        signature.verify(sent, keys)
    assert caught.value.status == 401
    return caught.value.detail


# --- keys ---


def test_a_secret_holds_its_key_and_new_ones_differ() -> None:
    assert signature.key_of(VECTOR_SECRET) == KEY
    new = {signature.new_secret() for _ in range(100)}
    assert len(new) == 100
    assert {len(signature.key_of(secret)) for secret in new} == {32}


@pytest.mark.parametrize("length", [24, 25, 63, 64])
def test_a_secret_may_hold_24_to_64_bytes(length: int) -> None:
    assert signature.key_of(secret_of(b"k" * length)) == b"k" * length


BAD_SECRETS = {
    "nothing": "",
    "one byte": secret_of(b"k"),
    "23 bytes": secret_of(b"k" * 23),
    "65 bytes": secret_of(b"k" * 65),
    "far too long": secret_of(b"k" * 100_000),
    "the prefix alone": "whsec_",
    "no prefix": base64.b64encode(KEY).decode(),
    "another prefix": VECTOR_SECRET.replace("whsec_", "whsk_"),
    "a prefix in capitals": VECTOR_SECRET.replace("whsec_", "WHSEC_"),
    "no base64": "whsec_" + "correct horse battery staple!!!!" * 2,
    "base64 for URLs": secret_of(b"\xff" * 32).replace("/", "_"),
    "no padding": VECTOR_SECRET.rstrip("="),
    "half": VECTOR_SECRET[:20],
    "a blank in front": " " + VECTOR_SECRET,
    "a blank behind": VECTOR_SECRET + " ",
    "a blank within": VECTOR_SECRET[:20] + " " + VECTOR_SECRET[20:],
    "a line break behind": VECTOR_SECRET + "\n",
    "a line break within": VECTOR_SECRET[:20] + "\n" + VECTOR_SECRET[20:],
    "blanks alone": "whsec_" + " " * 40,
    "no ASCII": "whsec_" + "ü" * 44,
    "a lone surrogate": "whsec_" + "\ud800" * 44,
    "bytes": VECTOR_SECRET.encode(),
    "none": None,
    "a number": 7,
    "a list": [VECTOR_SECRET],
}


@pytest.mark.parametrize("secret", BAD_SECRETS.values(), ids=BAD_SECRETS.keys())
def test_what_is_no_secret_is_refused_and_never_repeated(secret: object) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        signature.key_of(secret)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    _is_not_repeated(secret, str(caught.value), repr(caught.value))


def _is_not_repeated(secret: object, *texts: str) -> None:
    text = secret if isinstance(secret, str) else str(secret)
    pieces = {text[n : n + 8] for n in range(len("whsec_"), len(text[:200]) - 8)} if len(text) > 20 else set()
    for each in texts:
        assert not [piece for piece in pieces if piece.strip() and piece in each]


# --- out ---


def test_the_vector_is_signed_as_the_official_library_signs_it() -> None:
    assert signature.sign([KEY], VECTOR_ID, NOW, VECTOR_BODY) == VECTOR


def test_what_is_signed_is_the_id_the_time_and_the_exact_body() -> None:
    digest = hmac.digest(KEY, f"an-id.{NOW}.".encode() + b"\xff\x00 body", hashlib.sha256)
    expected = "v1," + base64.b64encode(digest).decode()
    assert signature.sign([KEY], "an-id", NOW, b"\xff\x00 body") == expected


def test_every_key_signs_and_the_newest_stands_first() -> None:
    alone = [signature.sign([key], VECTOR_ID, NOW, VECTOR_BODY) for key in (KEY, OTHER, THIRD)]
    assert signature.sign([KEY, OTHER, THIRD], VECTOR_ID, NOW, VECTOR_BODY) == " ".join(alone)


def test_each_try_is_signed_for_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = wire.encode(Event(VECTOR_ID, "user-created", b"{}", "accounts", NOON))
    for now in (NOW, NOW + 7):
        monkeypatch.setattr(wire, "time", SimpleNamespace(time=lambda now=now: now + 0.9))
        headers = wire.stamp(sent, [OTHER, KEY])
        assert headers["webhook-timestamp"] == str(now)
        assert headers["webhook-signature"] == signature.sign([OTHER, KEY], VECTOR_ID, now, sent.body)
    assert "webhook-signature" not in wire.stamp(sent)
    assert "webhook-signature" not in sent.headers


# --- in ---


def test_any_of_our_keys_may_have_signed_and_the_name_beside_it_is_told() -> None:
    keys = [("accounts", OTHER), ("payments", KEY), ("orders", THIRD)]
    assert verified(message(), keys) == "payments"
    both = signature.sign([b"x" * 32, THIRD], VECTOR_ID, NOW, VECTOR_BODY)
    assert verified(message(both), keys) == "orders"
    assert refusal(message(signature.sign([b"x" * 32], VECTOR_ID, NOW, VECTOR_BODY)), keys)
    assert refusal(message(), [])


@pytest.mark.parametrize("apart_s", [-300, -299, 0, 299, 300])
def test_a_message_of_these_five_minutes_is_taken(apart_s: int, clock: list[float]) -> None:
    clock[0] = NOW + apart_s
    assert verified(message()) == "payments"


@pytest.mark.parametrize("apart_s", [-301, -300.5, 300.5, 301, 86_400, -86_400])
def test_an_older_or_younger_message_is_refused_and_told_of_the_clock(
    apart_s: float, clock: list[float]
) -> None:
    clock[0] = NOW + apart_s
    detail = refusal(message())
    assert ("behind" if apart_s > 0 else "ahead of") in detail
    assert "clock" in detail


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        "-1",
        f"-{NOW}",
        f"+{NOW}",
        f"{NOW}.0",
        f"{NOW}.5",
        f" {NOW}",
        f"{NOW} ",
        f"{NOW}\n",
        f"{NOW}\x00",
        "1_700_000_000",
        "17_00000000",
        "1.7e9",
        "".join(chr(0x660 + int(digit)) for digit in str(NOW)),  # Arabic digits
        "".join(chr(0xFF10 + int(digit)) for digit in str(NOW)),  # full width
        "NaN",
        "nan",
        "inf",
        "Infinity",
        "0x6553F100",
        "2023-11-14T22:13:20Z",
        f"{NOW},{NOW}",
        f"{NOW} {NOW}",
        f"000{NOW}",
        "9" * 12,
        "9" * 13,
        "9" * 5000,
        "\ud800",
    ],
    ids=ascii,
)
def test_a_timestamp_that_is_no_plain_number_of_these_minutes_is_refused(value: str) -> None:
    # However well it is signed
    signed = f"{VECTOR_ID}.{value}.".encode("utf-8", "replace") + VECTOR_BODY
    own = "v1," + base64.b64encode(hmac.digest(KEY, signed, "sha256")).decode()
    assert refusal(message(own, webhook_timestamp=value))


@pytest.mark.parametrize("name", ["webhook_id", "webhook_timestamp", "webhook_signature"])
def test_a_message_that_lacks_one_of_the_three_headers_is_refused(name: str) -> None:
    for value in (None, ""):
        changes: dict[str, Any] = {name: value}
        assert refusal(message(**changes))


def test_an_id_with_a_dot_is_refused_as_parts_of_what_is_signed_could_change_places() -> None:
    # Given a signed message whose body begins with a number and a dot
    body = f"{NOW}.{{}}".encode()
    value = signature.sign([KEY], "a", NOW, body)
    assert verified(message(value, webhook_id="a", body=body))
    # When its parts are cut elsewhere, the signature is right still
    assert refusal(message(value, webhook_id=f"a.{NOW}", body=b"{}"))
    assert refusal(message(value, webhook_id="a.", body=body))


patiently = settings(deadline=None)
bodies = st.binary(min_size=1, max_size=60)


@patiently
@given(bodies, st.sampled_from(["webhook-id", "webhook-timestamp", "body"]), st.data())
def test_one_flipped_bit_is_refused(body: bytes, where: str, data: Any) -> None:
    sent = message(signature.sign([KEY], VECTOR_ID, NOW, body), body=body)
    assert verified(sent) == "payments"
    text = bytearray(body if where == "body" else sent.headers[where].encode())
    bit = data.draw(st.integers(0, 8 * len(text) - 1))
    text[bit // 8] ^= 1 << bit % 8
    if where == "body":
        assert refusal(Message(sent.headers, bytes(text)))
    else:
        assert refusal(Message({**sent.headers, where: text.decode("latin-1")}, body))


@patiently
@given(bodies, st.data())
def test_one_flipped_bit_of_the_signature_is_refused(body: bytes, data: Any) -> None:
    value = bytearray(signature.sign([KEY], VECTOR_ID, NOW, body).encode())
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    value[bit // 8] ^= 1 << bit % 8
    assert refusal(message(value.decode("latin-1"), body=body))


def test_the_same_json_written_anew_is_refused() -> None:
    content = json.loads(VECTOR_BODY)
    for again in (
        json.dumps(content),
        json.dumps(content, separators=(",", ":")),
        VECTOR_BODY.decode() + "\n",
    ):
        assert refusal(message(body=again.encode()))


SIGNATURE = VECTOR.removeprefix("v1,")
BAD_SIGNATURES = {
    "a blank": " ",
    "the version alone": "v1",
    "the version and a comma": "v1,",
    "no base64": "v1,@",
    "letters": "a,b,c",
    "a comma": ",",
    "many commas": "," * 1000,
    "no version": SIGNATURE,
    "another version": f"v2,{SIGNATURE}",
    "only ed25519": f"v1a,{SIGNATURE}",
    "a version in capitals": f"V1,{SIGNATURE}",
    "hexadecimal": "v1," + base64.b64decode(SIGNATURE).hex(),
    "no padding": VECTOR.rstrip("="),
    "more padding": VECTOR + "=",
    "base64 for URLs": VECTOR.replace("+", "-").replace("/", "_") + "\t",
    "more behind": VECTOR + "A",
    "a blank after the comma": f"v1, {SIGNATURE}",
    "a tab between two": f"v1,x\t{VECTOR}",
    "two headers joined by a comma": f"{VECTOR},{VECTOR}",
    "two headers joined by a comma and a blank": f"v1,x,{VECTOR}",
    "no ASCII": "v1,ü",
    "no ASCII behind the right one": VECTOR + "ü",
    "no ASCII that looks like it": VECTOR.replace("S", "\N{CYRILLIC CAPITAL LETTER DZE}"),
    "a lone surrogate": "v1,\ud800",
    "a NUL": VECTOR + "\x00",
    "latin-1": b"v1,\xff\xfe".decode("latin-1"),
    "a million characters": "v1," + "A" * 1_000_000,
}


@pytest.mark.parametrize("value", BAD_SIGNATURES.values(), ids=BAD_SIGNATURES.keys())
def test_what_is_no_signature_of_ours_is_refused(value: str) -> None:
    assert refusal(message(value))


@pytest.mark.parametrize("length", range(len(SIGNATURE)))
def test_the_beginning_of_the_right_signature_is_refused(length: int) -> None:
    """CVE-2024-21491: a comparison that ends with the shorter text takes any prefix of it."""
    assert refusal(message(f"v1,{SIGNATURE[:length]}"))


def test_the_right_one_is_found_beside_others() -> None:
    for value in (f"v1,x {VECTOR}", f"{VECTOR} v1,x", f"v1a,{SIGNATURE} {VECTOR}", f"  {VECTOR} ü"):
        assert verified(message(value)) == "payments"


def test_of_ten_thousand_signatures_the_first_16_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = _spied_on(monkeypatch)
    assert verified(message(" ".join(["v1,x"] * 15 + [VECTOR]))) == "payments"
    assert refusal(message(" ".join(["v1,x"] * 16 + [VECTOR])))
    # Given a header of 10,000
    del compared[:]
    began = time.perf_counter()
    assert refusal(message(" ".join([f"v1,{SIGNATURE[::-1]}"] * 9_999 + [VECTOR])))
    assert time.perf_counter() - began < 1.0
    assert len(compared) == 16


def _spied_on(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    compared: list[tuple[bytes, bytes]] = []

    def compare_digest(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    spy = SimpleNamespace(compare_digest=compare_digest, digest=hmac.digest)
    monkeypatch.setattr(signature, "hmac", spy)
    return compared


def test_bytes_are_compared_in_constant_time_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given signatures that begin as the right one does, and some that no comparison of str takes
    compared = _spied_on(monkeypatch)
    given_ = [f"v1,{SIGNATURE[:-2]}A=", "v1,ü", "v1,", f"v1,{SIGNATURE}A", VECTOR]
    # When they are verified with two keys, the second of which is the right one
    assert verified(message(" ".join(given_)), [("accounts", OTHER), ("payments", KEY)]) == "payments"
    # Then each comparison was made by `hmac.compare_digest`, on bytes, whatever the lengths
    expected = [
        signature.sign([key], VECTOR_ID, NOW, VECTOR_BODY)[len("v1,") :].encode() for key in (OTHER, KEY)
    ]
    texts = [each[len("v1,") :].encode() for each in given_]
    assert compared == [(key, text) for key in expected for text in texts]


def test_nothing_takes_a_signature_but_compare_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    never = SimpleNamespace(compare_digest=lambda a, b: False, digest=hmac.digest)
    monkeypatch.setattr(signature, "hmac", never)
    assert refusal(message())


@patiently
@given(st.dictionaries(st.sampled_from(wire.HEADERS), st.text(max_size=40)), st.binary(max_size=40))
def test_whatever_arrives_is_refused_with_401(headers: dict[str, str], body: bytes) -> None:
    for more in ({}, {"webhook-timestamp": str(NOW)}, {"webhook-timestamp": str(NOW), "webhook-id": "1"}):
        assert refusal(Message({**headers, **more}, body))


# --- whose key is whose ---


def ring(**given: Any) -> Keyring:
    services = {name: given[name] for name in given if not name.isupper()}
    return keyring.read(given.get("SECRETS", ()), services, given.get("SERVICE", "tests"))


def pairwise(*keys: bytes) -> dict[str, Any]:
    return {"URL": "https://somewhere/", "SECRETS": [secret_of(key) for key in keys]}


def signer(found: Keyring, key: bytes, hint: str = "") -> str:
    return verified(message(signature.sign([key], VECTOR_ID, NOW, VECTOR_BODY)), list(found.verifying(hint)))


def test_a_service_s_own_keys_sign_what_goes_to_it_and_the_fleet_s_all_else() -> None:
    found = ring(SECRETS=[secret_of(KEY), secret_of(OTHER)], payments=pairwise(THIRD), orders="https://o/")
    assert found.signing_for("payments") == (THIRD,)
    assert found.signing_for("orders") == found.signing_for("unheard of") == (KEY, OTHER)
    assert ring(payments=pairwise(THIRD)).signing_for("orders") == ()
    assert ring(SECRETS=[secret_of(KEY)], payments=pairwise()).signing_for("payments") == (KEY,)


def test_pairwise_keys_tell_who_signed_and_the_fleet_s_tell_nobody() -> None:
    found = ring(SECRETS=[secret_of(KEY)], payments=pairwise(OTHER), orders=pairwise(THIRD))
    assert signer(found, OTHER) == "payments"
    assert signer(found, THIRD) == "orders"
    assert signer(found, KEY) == FLEET == ""


def test_both_keys_of_a_rotation_tell_the_same() -> None:
    found = ring(payments=pairwise(OTHER, THIRD))
    assert signer(found, OTHER) == signer(found, THIRD) == "payments"


@pytest.mark.parametrize("hint", ["", "tests", "payments", "orders"])
def test_the_keys_of_the_service_s_own_entry_tell_nobody(hint: str) -> None:
    """All who send to it sign with them: whoever knows them could take the name of any other."""
    found = ring(tests=pairwise(OTHER), payments=pairwise(THIRD))
    assert signer(found, OTHER, hint) == FLEET
    assert signer(found, THIRD, hint) == "payments"


@pytest.mark.parametrize("own", ["tests", "payments", ""])
def test_the_hint_changes_the_order_and_nothing_else(own: str) -> None:
    found = ring(
        SERVICE=own,
        SECRETS=[secret_of(KEY)],
        payments=pairwise(OTHER, b"p" * 32),
        orders=pairwise(THIRD),
        tests=pairwise(b"q" * 32),
    )
    plain = list(found.verifying(""))
    assert len(plain) == 5
    for hint in ("payments", "orders", "tests", "unheard of", "\x00", own):
        assert sorted(found.verifying(hint)) == sorted(plain)
        for _, key in plain:
            assert signer(found, key, hint) == signer(found, key)
    assert next(found.verifying("orders")) == ("orders", THIRD)


def test_a_keyring_is_true_where_there_is_a_key() -> None:
    assert not ring()
    assert not ring(payments="https://somewhere/", orders=pairwise())
    assert ring(SECRETS=[secret_of(KEY)])
    assert ring(payments=pairwise(KEY))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"SECRETS": [KEY, KEY]}, ["AEVENTS['SECRETS'][1] is the same as AEVENTS['SECRETS'][0]"]),
        (
            {"SECRETS": [KEY], "payments": [KEY, OTHER]},  # behind its own: see test_many_keys.py
            ["AEVENTS['SERVICES']['payments']['SECRETS'][0] is the same as AEVENTS['SECRETS'][0]"],
        ),
        (
            {"payments": [KEY], "orders": [KEY]},
            [
                "AEVENTS['SERVICES']['orders']['SECRETS'][0] is the same as"
                " AEVENTS['SERVICES']['payments']['SECRETS'][0]"
            ],
        ),
    ],
)
def test_a_secret_in_two_places_is_a_mistake_as_it_would_not_tell_who(
    given: dict[str, list[bytes]], says: list[str]
) -> None:
    entries: dict[str, Any] = {
        name: [secret_of(key) for key in keys] if name == "SECRETS" else pairwise(*keys)
        for name, keys in given.items()
    }
    assert list(ring(**entries).mistakes) == says


@pytest.mark.parametrize(
    "secrets",
    [VECTOR_SECRET, VECTOR_SECRET.encode(), {VECTOR_SECRET: 1}, None, 7, True],
    ids=lambda value: type(value).__name__,
)
def test_secrets_that_are_no_list_are_one_mistake_that_says_where(secrets: Any) -> None:
    # A string is a list of its characters, and a dict one of its keys.
    for found, where in (
        (ring(SECRETS=secrets), "AEVENTS['SECRETS']"),
        (ring(payments={"URL": "x", "SECRETS": secrets}), "AEVENTS['SERVICES']['payments']['SECRETS']"),
    ):
        (mistake,) = found.mistakes
        assert mistake.startswith(f"{where} is a {type(secrets).__name__}")
        assert not found


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_secrets_may_be_any_list(kind: Any) -> None:
    assert ring(SECRETS=kind([VECTOR_SECRET])).fleet == (KEY,)


def test_one_bad_secret_names_its_place_and_the_others_are_read_on() -> None:
    found = ring(SECRETS=[VECTOR_SECRET, "nonsense", secret_of(OTHER)])
    (mistake,) = found.mistakes
    assert mistake.startswith("AEVENTS['SECRETS'][1] is no secret: ")
    assert found.fleet == (KEY, OTHER)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


@pytest.mark.parametrize("secret", BAD_SECRETS.values(), ids=BAD_SECRETS.keys())
async def test_the_text_of_a_secret_is_in_no_mistake_repr_or_log(
    secret: Any, settings: Any, logged: pytest.LogCaptureFixture
) -> None:
    # Given a bad secret in each place, beside a good one
    settings.AEVENTS = {
        "SERVICE": "tests",
        "STORE": None,
        "ENABLED": True,
        "UNSIGNED": "accept",
        "SECRETS": [secret, VECTOR_SECRET],
        "SERVICES": {"payments": {"URL": "http://127.0.0.1:1/", "SECRETS": [secret]}},
        "SUBSCRIPTIONS": {"*": ["payments"]},
    }
    # When it is used both ways
    answer = await receive(message(), peer="192.0.2.7", at_home=True)
    emission = await aemit("user-created", {})
    # Then it is neither kept nor told, and so is the good one
    assert answer.status == 503
    assert not emission.ok
    (payments,) = routes.destinations_of("user-created")
    texts = [
        *routes.mistakes(),
        repr(conf()),
        repr(payments),
        repr(answer),
        repr(emission),
        logged.text,
    ]
    assert len(routes.mistakes()) == 2
    _is_not_repeated(secret, *texts)
    _is_not_repeated(VECTOR_SECRET, *texts)
    assert not [text for text in texts if repr(KEY)[2:-1] in text]
