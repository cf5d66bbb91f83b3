"""The short way in: what it takes and what it leaves to Django, how it reads bodies, and whom it answers.

That its answers are those of the view is shown beside the view's own: tests with the way `short`.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Iterable
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.test import override_settings
from django.urls import include, path
from hypothesis import given
from hypothesis import strategies as st

from aevents import subscribe_to
from aevents.asgi import receiver
from aevents.views import EventViewSet
from tests.project.clients import JSON, Reply, ask, ask_asgi

AEVENTS = {"SERVICE": "tests", "UNSIGNED": "accept", "ENABLED": True, "STORE": None}
BODY = b'{"event_type":"user-created","payload":{"user_id":7}}'
KIB, MIB = 1024, 1024 * 1024


@pytest.fixture(autouse=True)
def _no_store(settings: Any) -> None:
    settings.AEVENTS = AEVENTS


@pytest.fixture
def payloads() -> list[Any]:
    """What a handler of `user-created` was called with."""
    seen: list[Any] = []
    subscribe_to("user-created", seen.append, name="handler")
    return seen


def urls(*patterns: Any) -> Any:
    module = types.ModuleType("urls")
    module.urlpatterns = list(patterns)  # type: ignore[attr-defined]  # it is made here
    return override_settings(ROOT_URLCONF=module)


# --- what it takes ---

#: Whatever reaches a handler of Django's that is made in it is a 500.
closed_to_django = override_settings(MIDDLEWARE=["tests.project.middleware.fails"])


async def told(application: Any, at: str, root_path: str = "") -> Reply:
    return await ask_asgi(BODY, JSON, path=at, root_path=root_path, to=application)


def is_short(at: str, *, path: str | None = None, root_path: str = "") -> bool:
    with closed_to_django:
        reply = asyncio.run(told(receiver(ASGIHandler(), path=path), at, root_path))
    assert reply.status in (200, 500)
    return reply.status == 200


def test_what_is_posted_where_the_urlconf_has_aevents_never_reaches_django(payloads: list[Any]) -> None:
    assert is_short("/events/")
    assert payloads == [{"user_id": 7}]


@pytest.mark.parametrize(
    ("method", "at", "status"),
    [("GET", "/events/", 405), ("OPTIONS", "/events/", 405), ("POST", "/events", 404), ("POST", "/", 404)],
)
def test_all_else_is_django_s(method: str, at: str, status: int, payloads: list[Any]) -> None:
    assert ask("short", BODY, method=method, path=at).status == status
    with closed_to_django:
        assert ask("short", BODY, method=method, path=at).status == 500
    assert payloads == []


def test_what_is_no_request_is_the_application_s() -> None:
    scopes: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope["type"])

    asyncio.run(receiver(application)({"type": "websocket", "path": "/events/"}, None, None))
    assert scopes == ["websocket"]


@pytest.mark.parametrize("mount", ["api/v1/events/", "", "gr\xfc\xdfe/"])
def test_it_is_found_wherever_the_urlconf_has_it(mount: str, payloads: list[Any]) -> None:
    with urls(path(mount, include("aevents.urls"))):
        assert is_short(f"/{mount}")


def test_a_path_of_one_s_own_is_taken_instead(payloads: list[Any]) -> None:
    with urls(path("hooks/<slug:who>/", EventViewSet.as_view({"post": "create"}))):
        assert is_short("/hooks/accounts/", path="/hooks/accounts/")
        assert not is_short("/hooks/payments/", path="/hooks/accounts/")
        assert asyncio.run(told(ASGIHandler(), "/hooks/payments/")).status == 200


def test_a_path_without_its_slash_could_match_nothing() -> None:
    with pytest.raises(ValueError, match="must begin with a slash, and 'events/' does not"):
        receiver(ASGIHandler(), path="events/")


@pytest.mark.parametrize("own", [None, "/events/"])
def test_under_a_prefix_it_is_where_django_has_it(own: str | None, payloads: list[Any]) -> None:
    # As servers tell it: a prefix that a proxy has, which the path repeats
    assert is_short("/shop/events/", path=own, root_path="/shop")
    assert not is_short("/shop/shop/events/", path=own, root_path="/shop")
    with override_settings(FORCE_SCRIPT_NAME="/forced"):
        assert is_short("/forced/events/", path=own)
        assert asyncio.run(told(ASGIHandler(), "/forced/events/")).status == 200


@pytest.mark.parametrize("patterns", [[], [path("<slug:tenant>/events/", include("aevents.urls"))]])
def test_where_it_finds_no_place_all_goes_through_django_and_the_log_says_so_once(
    patterns: list[Any], payloads: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with urls(*patterns):
        application = receiver(ASGIHandler())
        for _ in range(2):
            status = asyncio.run(told(application, "/acme/events/")).status
            assert status == (200 if patterns else 404)
    [said] = [record.getMessage() for record in caplog.records if record.name == "aevents"]
    assert "finds no place for events in the ROOT_URLCONF" in said
    assert "receiver(application, path=...)" in said


def test_a_urlconf_that_is_broken_is_django_s_to_tell() -> None:
    asked: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])

    short = receiver(application)
    with override_settings(ROOT_URLCONF="tests.no_such_urls"):
        asyncio.run(Client([BODY]).ask(short))
    assert asked == ["/events/"]
    assert asyncio.run(Client([BODY]).ask(short)) == 200  # mended, it is asked again


# --- how it reads bodies ---


class Client:
    """Sends these pieces one by one, and counts what was asked for; then it waits, or breaks off."""

    def __init__(self, pieces: Iterable[bytes], *, is_whole: bool = True, **headers: str) -> None:
        self.pieces = iter(pieces)
        self.is_whole = is_whole
        self.headers = {**JSON, **headers}
        self.given = 0
        self.sent: list[dict[str, Any]] = []

    async def ask(self, application: Any = None) -> int | None:
        """Return the status of the answer, or None where there was none."""
        headers = [(name.replace("_", "-").encode(), text.encode()) for name, text in self.headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/events/", "headers": headers, "client": None}
        async with asyncio.timeout(10):
            await (application or receiver(ASGIHandler()))(scope, self.receive, self.send)
        return self.sent[0]["status"] if self.sent else None

    async def receive(self) -> dict[str, Any]:
        piece = next(self.pieces, None)
        if piece is not None:
            self.given += len(piece)
            return {"type": "http.request", "body": piece, "more_body": True}
        if self.is_whole:
            self.is_whole = False
            return {"type": "http.request"}  # both members may be left out
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("size", [1, 7, KIB])
async def test_a_body_may_come_in_any_pieces(size: int, payloads: list[Any]) -> None:
    pieces = [BODY[n : n + size] for n in range(0, len(BODY), size)]
    assert await Client([b"", *pieces, b""]).ask() == 200
    assert payloads == [{"user_id": 7}]


@pytest.mark.parametrize("headers", [{}, {"content_length": "10"}], ids=["without a length", "understated"])
async def test_of_a_body_without_end_no_more_is_kept_than_allowed_and_8_mib_are_read_on(
    headers: dict[str, str],
) -> None:
    client = Client((b" " * (64 * KIB) for _ in range(10_000)), **headers)
    assert await client.ask() == 413
    assert client.given == MIB + 64 * KIB + 8 * MIB


async def test_a_length_over_the_limit_is_refused_before_anything_is_kept() -> None:
    client = Client((b" " * (64 * KIB) for _ in range(10_000)), content_length=str(MIB + 1))
    assert await client.ask() == 413
    assert client.given == 8 * MIB


async def test_a_body_of_exactly_the_limit_is_no_more_than_that(payloads: list[Any]) -> None:
    body = BODY[:-1] + b" " * (MIB - len(BODY)) + b"}"
    assert await Client([body[:-1], body[-1:]]).ask() == 200
    assert await Client([body, b" "]).ask() == 413


@pytest.mark.parametrize("pieces", [[], [BODY[:20]], [BODY]], ids=["before", "within", "before the end"])
async def test_of_a_client_that_breaks_off_nothing_is_taken(pieces: list[bytes], payloads: list[Any]) -> None:
    assert await Client(pieces, is_whole=False).ask() is None
    assert payloads == []


async def test_a_client_that_is_gone_when_it_is_answered_hurts_nobody(payloads: list[Any]) -> None:
    class Gone(Client):
        async def send(self, message: dict[str, Any]) -> None:
            raise OSError("as the ASGI specification allows")

    await Gone([BODY]).ask()
    assert payloads == [{"user_id": 7}]


async def test_a_caller_that_is_cancelled_leaves_the_handler_to_its_end() -> None:
    began, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(payload: Any) -> None:
        began.set()
        await may_end.wait()
        ended.set()

    subscribe_to("user-created", handler, name="handler")
    asking = asyncio.create_task(Client([BODY]).ask())
    await began.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    may_end.set()
    await asyncio.wait_for(ended.wait(), 5)


# --- the same answers ---

_NAMES = """
    content-type content-length content-encoding accept traceparent webhook-id webhook-timestamp
    webhook-signature webhook_id ce-specversion ce-id ce-type ce-source ce-time
"""
_VALUES = """
    application/json application/cloudevents+json application/cloudevents-batch+json text/html gzip
    1.0 7 53 -1 2000000 user-created v1,AAAA \xff
"""
_names = st.sampled_from(_NAMES.split())
_values = st.sampled_from(["", "x" * 300, *_VALUES.split()]) | st.text(
    st.characters(min_codepoint=32, max_codepoint=255), max_size=20
)
_bodies = st.sampled_from(
    [b"", BODY, b"[]", b"{", b"[" + BODY + b"]", b'{"specversion":"1.0","id":"1","type":"a","source":"/a"}']
) | st.binary(max_size=60)


@given(st.lists(st.tuples(_names, _values), max_size=6), _bodies)
def test_whatever_is_asked_both_ways_give_the_same_answer(
    headers: list[tuple[str, str]], body: bytes
) -> None:
    # Repeated headers among them, which no dict could hold
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    answers = [asyncio.run(_raw(to, raw, body)) for to in (ASGIHandler(), receiver(ASGIHandler()))]
    assert answers[0] == answers[1]


async def _raw(application: Any, headers: list[tuple[bytes, bytes]], body: bytes) -> tuple[Any, ...]:
    client = Client([body])
    kept = {b"content-type", b"accept-post", b"retry-after"}
    path_ = {"path": "/events/", "raw_path": b"/events/", "root_path": "", "query_string": b""}
    scope = {"type": "http", "method": "POST", "headers": headers, "http_version": "1.1", **path_}

    async def receive() -> dict[str, Any]:
        if client.is_whole:
            return await client.receive()
        await asyncio.sleep(10)  # it stays for its answer
        return {"type": "http.disconnect"}

    await application(scope, receive, client.send)
    start, *rest = client.sent
    answered = {name.lower(): value for name, value in start["headers"] if name.lower() in kept}
    content = b"".join(message.get("body", b"") for message in rest)
    return start["status"], answered, content if start["status"] != 200 else len(content)
