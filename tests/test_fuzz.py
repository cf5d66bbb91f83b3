"""Made-up messages, a short run of each fuzzer: nothing that arrives may do more than be refused.

The long run is `tox -e fuzz`: see tests/test_fuzz_long.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aevents.event import Message
from tests.fuzz import seeds, starting, targets
from tests.fuzz.mutations import mutated
from tests.fuzz.packing import FLIP, SIGN, pack, unpack
from tests.fuzz.targets import KEYS, TARGETS

NUMBER = 10_000


@pytest.fixture(autouse=True)
def _settings(settings: Any, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    settings.AEVENTS = targets.AEVENTS
    caplog.set_level(logging.CRITICAL, "aevents")
    yield
    targets.hang_up()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_whatever_arrives_is_an_event_or_is_refused(target: Callable[[bytes], None]) -> None:
    beginnings = list(seeds.small())
    for data in (*beginnings, *mutated(beginnings, NUMBER, seed=4711, words=seeds.WORDS)):
        try:
            target(data)
        except Exception as error:
            error.add_note(f"the input: {data!r}")
            raise


def test_bodies_of_a_mebibyte_are_too() -> None:
    for data in seeds.large():
        targets.verifier(data)
        targets.receiver(data)  # which decodes it


@pytest.mark.processes
@pytest.mark.parametrize("target", ["decoder", "verifier"])
def test_libfuzzer_finds_nothing_in_a_few_thousand_inputs(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")  # there is none for every system
    assert starting.fuzz(target, tmp_path, inputs=5_000) >= 5_000


# --- the fuzzers themselves ---


def test_a_message_is_packed_and_comes_out_again() -> None:
    headers = {"content-type": "application/json", "webhook-id": "\xfc 1", "ce-type": ""}
    assert unpack(pack(headers, b"\n{}\n\n"), KEYS).message == Message(headers, b"\n{}\n\n")


def test_any_bytes_are_a_message() -> None:
    for data in (b"", b"\n", b"@", b"@a", b"@\n", b"@\xff\xff\n\xff", b"\x00" * 9, b"@a1\na2\n\n"):
        assert isinstance(unpack(data, KEYS).message, Message)
    assert unpack(b"@a1\na2\n\n", KEYS).message.headers == {"content-type": "1,2"}


def test_a_message_signed_for_the_verifier_passes_it_and_one_changed_afterwards_does_not() -> None:
    headers = {"content-type": "application/json", "webhook-id": "1"}
    event = b'{"event_type":"a","payload":1}'
    assert targets.received(unpack(pack(headers, event, SIGN), KEYS).message).status == 200
    assert targets.received(unpack(pack(headers, event, SIGN | FLIP), KEYS).message).status == 401


def test_the_seeds_reach_every_answer() -> None:
    answers = [targets.received(unpack(data, KEYS).message).status for data in seeds.small()]
    assert set(answers) == {200, 400, 401, 403, 415}


def test_the_same_number_makes_the_same_inputs() -> None:
    def made(seed: int) -> list[bytes]:
        return list(mutated([b"abc", b"def"], 50, seed=seed, words=[b"word"]))

    assert made(1) == made(1) != made(2)


BROKEN: dict[str, tuple[str, str, Any]] = {
    "long numbers are read as floats": ("decoder", "aevents.payload._LONG_NUMBER", re.compile(rb"never")),
    "what was quoted stays so": ("decoder", "aevents.wire._unquote", str),
    "a payload is taken unread": ("decoder", "aevents.payload.decode", lambda data: data),
    "the beginning of a signature is enough": ("verifier", "hmac.compare_digest", bytes.startswith),
    "a day is as good as a minute": ("verifier", "aevents.signature.TOLERANCE_S", 86_400),
    "the handlers cannot be run": ("receiver", "aevents.inbox.take_in", lambda event: event.nothing),
}


@pytest.mark.parametrize(("target", "place", "instead"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_promise_is_seen(
    target: str, place: str, instead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginnings = list(seeds.small())
    monkeypatch.setattr(place, instead)
    with pytest.raises(Exception):  # noqa: B017, PT011 - any is what a fuzzer looks for
        list(map(TARGETS[target], beginnings))
