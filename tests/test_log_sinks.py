"""A log that fails, or takes its time, is the project's: events go on as without it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from aevents import aemit, emit, receiver, subscribe_to
from tests.peers import Fleet, Peer, answers, eventually
from tests.project.clients import JSON, WAYS, ask

BODY = b'{"event_type":"noted","payload":1}'


class Sink(logging.Handler):
    """Fails as a full disk does, or takes its time."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.fails = fails
        self.asked = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.asked += 1
        if self.fails:
            raise OSError("no space left on device")
        time.sleep(0.02)


@pytest.fixture(params=["fails", "is slow"])
def sink(request: pytest.FixtureRequest, settings: Any) -> Iterator[Sink]:
    """A handler that gets every line there is."""
    logger, handler = logging.getLogger("aevents"), Sink(fails=request.param == "fails")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    with Fleet(settings) as fleet:
        fleet(UNSIGNED="warn")
        yield handler
        assert handler.asked
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize("way", WAYS)
def test_what_arrives_is_answered_and_handled(sink: Sink, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    subscribe_to("noted", calls.append, name="handler")
    subscribe_to("failing", lambda payload: 1 / 0, name="failing")
    monkeypatch.setattr(receiver, "_warned_at", {})
    assert ask(way, BODY).status == 200
    assert calls == [1]
    receiver._warned_at.clear()
    assert ask(way, b"no JSON").status == 400
    assert ask(way, BODY.replace(b"noted", b"failing")).status == 503
    assert ask(way, BODY, {**JSON, "webhook-id": "\x1b"}).status == 400


def test_what_is_emitted_arrives_and_a_loss_is_told_to_the_caller(sink: Sink, settings: Any) -> None:
    with Fleet(settings) as fleet, Peer(answers(500), answers(200)) as peer:
        fleet(payments=peer, LIMITS={"TRIES": 2})
        assert emit("noted", {"n": 1}).delivered
        peer.behave(answers(500))
        assert [result.outcome for result in emit("noted", {"n": 2}).results] == ["failed"]
        assert not emit("", {}).ok
        peer.behave(answers(200))
        eventually(lambda: emit("noted", {"n": 3}).delivered)


async def test_so_it_is_with_aemit(sink: Sink, settings: Any) -> None:
    with Fleet(settings) as fleet, Peer() as peer:
        fleet(payments=peer)
        assert (await aemit("noted", {"n": 1})).delivered
        assert not (await aemit("noted", {1, 2})).ok  # type: ignore[arg-type]


def test_a_filter_that_fails_stops_nobody_and_stderr_says_so(
    settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(record: logging.LogRecord) -> bool:
        raise ValueError("a bug in a filter")

    settings.AEVENTS = {"SERVICE": "tests", "UNSIGNED": "accept", "ENABLED": True, "STORE": None}
    logger = logging.getLogger("aevents")
    logger.addFilter(fails)
    try:
        assert ask("asgi", b"no JSON", peer="198.51.100.7").status == 400
    finally:
        logger.removeFilter(fails)
    assert "a bug in a filter" in capsys.readouterr().err
