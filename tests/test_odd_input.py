"""Types that write more than a name, handlers that return too much, URLs that lead elsewhere."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import pytest

from aevents import emit, subscribe_to
from aevents.event import new_id
from tests.ledger import Ledger
from tests.peers import Fleet, Peer, eventually
from tests.project.clients import JSON, WAYS, ask
from tests.test_store import store_one


@pytest.fixture
def _settings(settings: Any) -> None:
    settings.AEVENTS = {"SERVICE": "tests", "UNSIGNED": "accept", "ENABLED": True, "STORE": None}


BAD_TYPES = ["a\r\nb", "a\nb", "\x1b[2Ja", "a\x00", "a\x9b31m", "\u202ea", "a\u2028", "x" * 64 * 1024, ""]
#: Harmless where it is escaped, and a pattern of no `*`.
ODD_TYPES = ["<script>alert(1)</script>", "a%0d%0ab", "%s %(event)s {0}", "' OR 1=1 --", "../../etc", "a b"]


@pytest.mark.usefixtures("_settings")
def test_what_can_be_no_type_is_refused_at_emit_and_on_arrival(
    caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    caplog.set_level("DEBUG")
    for bad in BAD_TYPES:
        assert not emit(bad, {}).ok
        assert ask("asgi", json.dumps({"event_type": bad, "payload": 1})).status == 400
    # And what is only odd goes through as it is, header and log included
    for odd in ODD_TYPES:
        subscribe_to(odd, lambda payload: None, name="handler")
        with Fleet(settings) as fleet, Peer() as peer:
            fleet(peer=peer)
            assert emit(odd, {}).delivered
        (request,) = peer.requests
        assert request.event_type == odd
        assert ask("asgi", request.body, request.headers).content["status"] == "handled"
    records = [record for record in caplog.records if record.name == "aevents"]
    assert records
    assert all(record.getMessage().isprintable() for record in records)
    assert max(len(record.getMessage()) for record in records) < 1000


class Huge(bytearray):
    """What can be referred to weakly."""


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_handler_returns_is_neither_answered_nor_kept(way: str, kind: str) -> None:
    made: list[weakref.ref[Huge]] = []

    def handler(payload: Any) -> Any:
        huge = Huge(64 * 1024 * 1024)
        made.append(weakref.ref(huge))
        return huge

    async def handler_async(payload: Any) -> Any:
        return handler(payload)

    subscribe_to("noted", handler if kind == "sync" else handler_async, name="handler")
    reply = ask(way, b'{"event_type":"noted","payload":1}', {**JSON, "webhook-id": new_id()})
    assert reply.status == 200
    assert len(reply.body) < 200
    gc.collect()
    eventually(lambda: made[0]() is None, what="nobody holds it")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "gopher://127.0.0.1:70/_",
        "ftp://127.0.0.1/",
        "unix:///run/docker.sock",
        "dict://127.0.0.1:11211/stat",
        "data:text/plain,x",
        "javascript:alert(1)",
        "//127.0.0.1/",
        "127.0.0.1",
        "",
    ],
)
def test_only_http_leads_out_of_the_process(url: str, settings: Any) -> None:
    with Fleet(settings) as fleet:
        fleet(b=url)
        (result,) = emit("noted", {}).results
        assert (result.outcome, result.service) == ("failed", "b")


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_url_in_the_database_is_no_destination(settings: Any, ledger: Ledger) -> None:
    """Whoever can write rows names a service of the settings, or nobody."""
    with Fleet(settings) as fleet, Peer() as peer, Peer() as payments:
        fleet(payments=payments, STORE=ledger.alias)
        store_one(peer.url)
        store_one("payments")
        with ledger.relaying():
            payments.wait_for(1)
            ledger.has(1)
        assert peer.connections == 0


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("way", WAYS)
def test_a_url_that_arrives_is_asked_for_nothing(way: str) -> None:
    subscribe_to("noted", lambda payload: None, name="handler")
    with Peer() as peer:
        named = (
            "webhook-request-callback",
            "webhook-request-origin",
            "origin",
            "referer",
            "link",
            "location",
        )
        headers = {**JSON, **dict.fromkeys(named, peer.url), "ce-source": peer.url}
        body = b'{"event_type":"noted","payload":{"url":"%b"},"callback":"%b"}'
        assert ask(way, body % (peer.url.encode(), peer.url.encode()), headers).status == 200
        assert ask(way, b"", headers, method="OPTIONS").status == 405
        assert peer.connections == 0
