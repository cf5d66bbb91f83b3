"""A service with a secret for each of 200 others: what a message may cost, and who is found all the same."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from aevents import batch, cloudevents, keyring, routes, signature, wire
from aevents.event import Event, Message, new_id
from aevents.receiver import receive
from tests.test_senders import FORMS, stamped
from tests.test_signature import secret_of
from tests.test_wire import event

KIB, MIB = 1024, 1024 * 1024
NAMES = [f"service-{n}" for n in range(200)]
SECRETS = {name: secret_of(os.urandom(32)) for name in NAMES}
FLEET, OWN, STRANGE = (signature.new_secret() for _ in range(3))
AEVENTS = {
    "SERVICE": "tests",
    "STORE": None,
    "ENABLED": True,
    "SECRETS": [FLEET],
    "SERVICES": {
        **{name: {"URL": "http://127.0.0.1:1/", "SECRETS": [SECRETS[name]]} for name in NAMES},
        "tests": {"URL": "http://127.0.0.1:1/", "SECRETS": [OWN]},
    },
    "SENDERS": {"noted": [*NAMES]},
}
# As much as goes into one batch, and the largest body of all.
SIZES = [KIB, 500 * KIB]


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> None:
    settings.AEVENTS = AEVENTS


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each HMAC was computed of."""
    sizes: list[int] = []

    def digest(key: bytes, text: bytes, method: str) -> bytes:
        sizes.append(len(text))
        return hmac.digest(key, text, method)

    spy = SimpleNamespace(compare_digest=hmac.compare_digest, digest=digest)
    monkeypatch.setattr(signature, "hmac", spy)
    return sizes


def an_event(source: str, size: int, event_type: str = "noted") -> Event:
    return event(id=new_id(), type=event_type, source=source, data=b'"%b"' % (b"x" * size))


async def answer_to(message: Message) -> tuple[int, list[Any]]:
    answer = await receive(message, peer="192.0.2.7", at_home=True)
    return answer.status, answer.content.get("events", [])


@pytest.mark.parametrize("size", [1, KIB, 80 * KIB, 256 * KIB, 600 * KIB, MIB - 200])
@pytest.mark.parametrize("name", ["nobody", *NAMES[::199]])
async def test_whoever_can_sign_nothing_costs_16_mib_of_hashing_and_no_more(
    hashed: list[int], size: int, name: str
) -> None:
    message = stamped(wire.encode(an_event(name, size)), STRANGE)
    hashed.clear()
    assert (await answer_to(message))[0] == 401
    assert 16 <= len(hashed) <= 202
    assert sum(hashed) <= 16 * MIB + 2 * KIB * len(hashed)
    # And while it is small, no key is left out
    assert len(hashed) == 202 or size > 80 * KIB


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES[::199])
async def test_what_our_own_services_send_is_verified_with_the_first_key(
    hashed: list[int], form: str, name: str, size: int
) -> None:
    message = stamped(FORMS[form](an_event(name, size)), SECRETS[name])
    hashed.clear()
    assert await answer_to(message) == (200, [])
    assert len(hashed) == 1


@pytest.mark.parametrize("secret", [FLEET, OWN], ids=["the fleet's", "its own"])
@pytest.mark.parametrize("hint", ["", NAMES[0], NAMES[-1], "tests", "nobody"])
async def test_the_secrets_that_many_have_are_tried_for_every_body(hint: str, secret: str) -> None:
    message = stamped(wire.encode(an_event(hint, 1000 * KIB, "other")), secret)
    assert await answer_to(message) == (200, [])


async def test_one_that_does_not_name_itself_is_found_while_its_body_is_small() -> None:
    for size, status in ((KIB, 200), (60 * KIB, 200), (500 * KIB, 401)):
        message = stamped(wire.encode(an_event("nobody", size)), SECRETS[NAMES[-1]])
        answer = await receive(message, peer="192.0.2.7", at_home=True)
        assert answer.status == status, size
    assert "Name the sender in ce-source" in answer.content["detail"]


@pytest.mark.parametrize("count", [1, 15, 16])
async def test_up_to_16_keys_are_tried_for_every_body_whoever_it_names(settings: Any, count: int) -> None:
    services = {name: AEVENTS["SERVICES"][name] for name in NAMES[:count]}  # type: ignore[index]
    settings.AEVENTS = {**AEVENTS, "SECRETS": [], "SERVICES": services, "SENDERS": {}}
    for name in NAMES[:count]:
        message = stamped(wire.encode(an_event("nobody", 1000 * KIB)), SECRETS[name])
        assert (await answer_to(message))[0] == 200


@pytest.mark.parametrize("form", ["structured", "batch"])
async def test_the_name_in_a_body_is_a_hint_and_no_more(form: str) -> None:
    # Given one that takes another's name, in the body that it signs with its own secret
    message = stamped(FORMS[form](an_event(NAMES[0], KIB)), SECRETS[NAMES[1]])
    assert routes.keys().verifying(cloudevents.source_hint(message.body)).__next__()[0] == NAMES[0]
    assert signature.verify(message, routes.keys().verifying(NAMES[0])) == NAMES[1]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"", ""),
        (b"\xff\xfe", ""),
        (b'{"source":"/a"', "a"),
        (b'{"source":"/%C3%BC"', "ü"),
        (b'{"source":"\xff"', "\ufffd"),
        (b'{"source":"/a\\"b"', ""),
        (b'{"source":"' + b"x" * 2000 + b'"', ""),
        (b" " * 5000 + b'{"source":"/a"', ""),
        (b'{"source":""', ""),
    ],
)
def test_a_hint_is_read_of_whatever_bytes(body: bytes, name: str) -> None:
    assert cloudevents.source_hint(body) == name


@pytest.mark.parametrize("encode", [cloudevents.encode, lambda sent: batch.encode([sent, sent])])
@pytest.mark.parametrize("source", ["accounts", "grüße", "/a b", 'a"b', "ü" * 250, ""])
def test_what_we_write_has_its_hint(encode: Callable[[Event], Message], source: str) -> None:
    sent = event(id="ü" * 200, source=source)
    assert cloudevents.source_hint(encode(sent).body) == source


# --- a secret of the fleet beside a service's own, while the fleet moves ---


def ring(*secrets: str, others: Any = ()) -> keyring.Keyring:
    services = {"payments": {"SECRETS": [*secrets]}, "orders": {"SECRETS": [*others]}}
    return keyring.read([FLEET, STRANGE], services, "tests")


def test_behind_its_own_a_service_may_have_the_fleet_s_and_it_tells_nobody() -> None:
    found = ring(OWN, FLEET, others=[SECRETS[NAMES[0]], FLEET])
    assert found.mistakes == ()
    assert found.signing_for("payments") == tuple(map(signature.key_of, (OWN, FLEET)))
    for hint in ("", "payments", "orders"):
        assert sorted(found.verifying(hint)) == sorted(
            [
                ("payments", signature.key_of(OWN)),
                ("orders", signature.key_of(SECRETS[NAMES[0]])),
                ("", signature.key_of(FLEET)),
                ("", signature.key_of(STRANGE)),
            ]
        )


@pytest.mark.parametrize("secrets", [[FLEET], [FLEET, OWN], [OWN, FLEET, FLEET], [OWN, OWN]])
def test_alone_in_front_or_twice_it_is_a_mistake_still(secrets: list[str]) -> None:
    (mistake,) = ring(*secrets).mistakes
    assert " is the same as AEVENTS['SE" in mistake


def test_another_service_s_secret_is_a_mistake_wherever_it_stands() -> None:
    (mistake,) = ring(OWN, FLEET, others=[SECRETS[NAMES[0]], OWN]).mistakes
    assert mistake.startswith("AEVENTS['SERVICES']['orders']['SECRETS'][1] is the same as")
