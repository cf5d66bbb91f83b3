"""A batch that arrives: what each event in it gets, what runs, what is stored, what is given back."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from aevents import batch, current_event, inbox, intake, subscribe_to, wire
from aevents.answer import Answer
from aevents.errors import Again
from aevents.event import Event, Message, new_id
from aevents.receiver import receive
from tests.ledger import Ledger
from tests.project.clients import WAYS, ask

AEVENTS = {"SERVICE": "tests", "UNSIGNED": "accept", "ENABLED": True, "STORE": None}
HEADERS = {"content-type": wire.BATCH}


def events(count: int, event_type: str = "noted", **fields: Any) -> list[Event]:
    now = datetime.now(UTC)
    return [Event(new_id(), event_type, b'{"n":%d}' % n, "accounts", now, **fields) for n in range(count)]


async def received(given: list[Event] | bytes) -> Answer:
    message = batch.encode(given) if isinstance(given, list) else Message(HEADERS, given)
    return await receive(message, peer="192.0.2.7", at_home=True)


def verdicts(answer: Answer) -> dict[str, int]:
    assert answer.status == 200
    return {each["id"]: each["status"] for each in answer.content["events"]}


class TestWithoutAStore:
    @pytest.fixture(autouse=True)
    def _no_store(self, settings: Any) -> None:
        settings.AEVENTS = AEVENTS

    async def test_each_event_is_handled_as_if_it_had_come_alone(self) -> None:
        seen: list[Any] = []

        async def first(payload: Any) -> None:
            seen.append((payload, current_event().id, current_event().source))  # type: ignore[union-attr]

        def second(payload: Any) -> None:
            seen.append(payload)

        subscribe_to("noted", first, name="first")
        subscribe_to("noted", second, name="second")
        sent = events(100)

        assert (await received(sent)).content == {"events": []}

        assert [each for each in seen if isinstance(each, tuple)] == [
            ({"n": n}, event.id, "accounts") for n, event in enumerate(sent)
        ]
        assert sorted(each["n"] for each in seen if isinstance(each, dict)) == list(range(100))

    async def test_what_nobody_handles_or_has_had_before_needs_no_verdict(self) -> None:
        runs: list[Any] = []
        subscribe_to("noted", runs.append, name="handler")
        sent = [*events(3), *events(2, "unheard-of")]

        assert verdicts(await received(sent)) == verdicts(await received(sent)) == {}
        assert len(runs) == 3

    async def test_an_event_that_stands_in_a_batch_twice_runs_once(self) -> None:
        runs: list[Any] = []
        subscribe_to("noted", runs.append, name="handler")
        (one,) = events(1)

        assert verdicts(await received([one, one])) == {}
        assert runs == [{"n": 0}]

    async def test_a_failure_is_the_event_s_own_and_stops_no_other(self) -> None:
        async def handler(payload: Any) -> None:
            if payload["n"] == 1:
                raise ValueError("no")
            if payload["n"] == 2:
                raise Again(7)

        subscribe_to("noted", handler, name="handler")
        sent = events(4)

        answer = await received(sent)

        failed, deferred = answer.content["events"]
        assert failed == {"id": sent[1].id, "status": 503, "detail": "These handlers failed: handler"}
        assert (deferred["id"], deferred["status"], deferred["retry_after_s"]) == (sent[2].id, 503, 7.0)

    async def test_a_malformed_event_is_its_own_400_and_the_others_are_taken(self) -> None:
        runs: list[Any] = []
        subscribe_to("noted", runs.append, name="handler")
        good = {"specversion": "1.0", "id": new_id(), "source": "/x", "type": "noted", "data": 7}
        bad = {"specversion": "1.0", "id": "bad", "source": "/x", "data": 8}

        answer = await received(json.dumps([bad, good, 9]).encode())

        assert verdicts(answer) == {"bad": 400, "": 400}
        assert runs == [7]

    @pytest.mark.parametrize(("body", "status"), [(b"", 400), (b"{}", 400), (b"[7", 400), (b"[]", 200)])
    async def test_a_malformed_batch_is_400(self, body: bytes, status: int) -> None:
        assert (await received(body)).status == status

    async def test_a_batch_is_taken_from_those_from_whom_an_event_is(self, settings: Any) -> None:
        settings.AEVENTS = {**AEVENTS, "UNSIGNED": "refuse"}
        assert (await received(events(1))).status == 401

    async def test_no_more_than_a_bound_run_at_once_and_a_slow_one_holds_up_no_other(self) -> None:
        now = most = 0
        may_end = asyncio.Event()
        ended: list[int] = []

        async def handler(payload: Any) -> None:
            nonlocal now, most
            now += 1
            most = max(most, now)
            if payload["n"] == 0:
                await may_end.wait()
            await asyncio.sleep(0.001)
            now -= 1
            ended.append(payload["n"])
            if len(ended) == 255:
                may_end.set()

        subscribe_to("noted", handler, name="handler")

        assert verdicts(await received(events(256))) == {}
        assert most == intake.AT_ONCE
        assert ended[-1] == 0

    async def test_what_has_not_begun_when_the_answer_is_due_is_given_back(self, settings: Any) -> None:
        settings.AEVENTS = {**AEVENTS, "LIMITS": {"ANSWER_S": 0.3}}
        begun: list[int] = []
        may_end = asyncio.Event()

        async def handler(payload: Any) -> None:
            begun.append(payload["n"])
            await may_end.wait()

        subscribe_to("noted", handler, name="handler")
        sent = events(100)

        answer = await received(sent)

        # Without a store nothing is owned before it has ended: what runs is given back too, and joined
        assert len(begun) == intake.AT_ONCE
        assert verdicts(answer) == {event.id: 503 for event in sent}
        assert {each["retry_after_s"] for each in answer.content["events"]} == {1.0}
        again = asyncio.create_task(receive(wire.encode(sent[0]), peer="", at_home=True))
        await asyncio.sleep(0.05)
        may_end.set()
        assert (await again).status == 200
        assert len(begun) == intake.AT_ONCE

    async def test_a_sync_handler_that_hangs_holds_up_the_answer_no_longer_than_that(
        self, settings: Any
    ) -> None:
        settings.AEVENTS = {**AEVENTS, "LIMITS": {"ANSWER_S": 0.3}}
        may_end = threading.Event()
        subscribe_to("noted", lambda payload: may_end.wait(15), name="handler")
        began = time.monotonic()

        try:
            assert len(verdicts(await received(events(3)))) == 3
            assert time.monotonic() - began < 5
        finally:
            may_end.set()


@pytest.mark.parametrize("way", WAYS)
def test_every_answer_of_the_view_offers_to_take_batches(way: str, settings: Any) -> None:
    settings.AEVENTS = AEVENTS
    single = b'{"event_type":"noted","payload":{}}'
    json_type = {"content-type": wire.JSON}
    replies = [
        ask(way, single, json_type),
        ask(way, b"{", json_type),
        ask(way, b"[]", HEADERS),
        ask(way, method="GET"),
        ask(way, b"x", {"content-type": "text/plain"}),
    ]
    assert [reply.status for reply in replies] == [200, 400, 200, 405, 415]
    for reply in replies:
        assert reply.headers["accept-post"] == "application/cloudevents-batch+json, application/json"


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_is_handled_through_the_view(way: str, settings: Any) -> None:
    settings.AEVENTS = AEVENTS
    seen: list[Any] = []
    subscribe_to("noted", seen.append, name="handler")

    reply = ask(way, batch.encode(events(20)).body, HEADERS)

    assert (reply.status, reply.content) == (200, {"events": []})
    assert sorted(payload["n"] for payload in seen) == list(range(20))


class TestWithAStore:
    def set(self, settings: Any, **given: Any) -> None:
        settings.AEVENTS = {**settings.AEVENTS, "UNSIGNED": "accept", "ENABLED": True, **given}

    async def test_what_lasts_or_fails_is_stored_and_needs_no_verdict(
        self, ledger: Ledger, settings: Any
    ) -> None:
        self.set(settings, LIMITS={"ANSWER_S": 0.3})
        may_end = asyncio.Event()
        runs: list[int] = []

        async def handler(payload: Any) -> None:
            runs.append(payload["n"])
            if payload["n"] == 1:
                raise ValueError("no")
            if payload["n"] == 2:
                await may_end.wait()

        subscribe_to("noted", handler, name="handler")

        assert verdicts(await received(events(4))) == {}

        rows = await asyncio.to_thread(ledger.rows)
        assert sorted((row.error[:10], bool(row.lease)) for row in rows) == [
            ("ValueError", False),
            ("it was sti", True),
        ]
        may_end.set()
        await asyncio.to_thread(ledger.has, 1)
        assert sorted(runs) == [0, 1, 2, 3]

    async def test_with_inbox_a_batch_is_stored_together_and_duplicates_are_dropped(
        self, ledger: Ledger, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.set(settings, INBOX=True, LIMITS={"ANSWER_S": 10.0})
        sizes: list[int] = []
        arrive = intake.store.arrive

        def counted(entries: Any) -> Any:
            sizes.append(len(entries))
            return arrive(entries)

        monkeypatch.setattr(intake.store, "arrive", counted)
        runs: list[int] = []

        async def handler(payload: Any) -> None:
            runs.append(payload["n"])

        subscribe_to("noted", handler, name="handler")
        sent = [*events(60), *events(1, "unheard-of")]

        assert verdicts(await received(sent)) == {}
        assert verdicts(await received(sent)) == {}

        await asyncio.to_thread(ledger.is_empty)
        assert sorted(runs) == list(range(60))
        assert sizes == [60, 60]

    async def test_with_inbox_no_more_begin_than_this_process_has_a_use_for(
        self, ledger: Ledger, settings: Any
    ) -> None:
        self.set(settings, INBOX=True, LIMITS={"HANDLERS": 3, "ANSWER_S": 10.0}, RELAY=False)
        may_end = asyncio.Event()

        async def handler(payload: Any) -> None:
            await may_end.wait()

        subscribe_to("noted", handler, name="handler")

        assert verdicts(await received([*events(2, key="k"), *events(5)])) == {}

        rows = await asyncio.to_thread(ledger.rows)
        assert [bool(row.lease) for row in rows] == [False, False, True, True, True, False, False]
        may_end.set()
        await asyncio.to_thread(ledger.has, 4)

    async def test_with_inbox_and_no_database_every_event_is_given_back(
        self, settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(entries: Any) -> Any:
            raise ValueError("no such luck")

        monkeypatch.setattr(intake.store, "arrive", broken)
        self.set(settings, INBOX=True, STORE="default")
        subscribe_to("noted", lambda payload: None, name="handler")
        sent = events(3)

        with caplog.at_level(logging.CRITICAL, "aevents"):
            answer = await received(sent)

        assert verdicts(answer) == {event.id: 503 for event in sent}
        assert {each["retry_after_s"] for each in answer.content["events"]} == {1.0}

    async def test_a_handler_that_lasts_while_nothing_can_be_stored_holds_up_no_other_event(
        self, settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(entries: Any) -> Any:
            raise ValueError("no such luck")

        monkeypatch.setattr(inbox.store, "add", broken)
        monkeypatch.setattr(intake, "_CONCLUDED_S", 0.3)
        self.set(settings, STORE="default", LIMITS={"ANSWER_S": 0.1})
        may_end, calls = asyncio.Event(), 0

        async def handler(payload: Any) -> None:
            nonlocal calls
            calls += 1
            if payload["n"] == 0:
                await may_end.wait()

        subscribe_to("noted", handler, name="handler")
        sent = events(3)

        with caplog.at_level(logging.CRITICAL, "aevents"):
            async with asyncio.timeout(30):
                answer = await received(sent)

            # It comes again, and joins the run
            assert verdicts(answer) == {sent[0].id: 503}
            again = asyncio.create_task(receive(wire.encode(sent[0]), peer="", at_home=True))
            await asyncio.sleep(0.05)
            may_end.set()
            assert (await again).status == 200
        assert calls == 3
