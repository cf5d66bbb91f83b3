"""The way in through Django: every way to mount it, every project around it, every bad request."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.apps import apps
from django.core.handlers.asgi import ASGIRequest
from django.test import AsyncRequestFactory, override_settings
from django.urls import include, path, resolve, reverse
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView

from aevents import current_event, subscribe_to
from aevents.threads import DaemonPool
from aevents.views import EventViewSet
from tests.project.clients import JSON, THROUGH_DJANGO, WAYS, Reply, ask, ask_asgi, ask_wsgi
from tests.project.notes import database
from tests.project.urls_mounts import MOUNTS

AEVENTS = {"SERVICE": "tests", "UNSIGNED": "accept", "ENABLED": True, "STORE": None}
BODY = b'{"event_type":"user-created","payload":{"user_id":7}}'
JSON_TYPE = JSON["content-type"]
MIB = 1024 * 1024
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.fixture(autouse=True)
def _no_store(settings: Any) -> None:
    settings.AEVENTS = AEVENTS


@pytest.fixture
def payloads() -> list[Any]:
    """What a handler of `user-created` was called with."""
    seen: list[Any] = []
    subscribe_to("user-created", seen.append, name="handler")
    return seen


def _urls(*patterns: Any) -> Any:
    module = types.ModuleType("urls")
    module.urlpatterns = list(patterns)  # type: ignore[attr-defined]  # it is made here
    return override_settings(ROOT_URLCONF=module)


def _is_refused(reply: Reply, status: int) -> str:
    assert reply.status == status, reply.body
    assert set(reply.content) == {"detail"}
    detail = reply.content["detail"]
    assert isinstance(detail, str)
    assert detail
    return detail


# --- mounted ---


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mount", MOUNTS)
def test_it_works_wherever_and_however_it_is_mounted(way: str, mount: str, payloads: list[Any]) -> None:
    with override_settings(ROOT_URLCONF="tests.project.urls_mounts"):
        reply = ask(way, BODY, path=mount)
        assert reply.status == 200
        assert reply.content["status"] == "handled"
        assert payloads == [{"user_id": 7}]
        assert "not JSON" in _is_refused(ask(way, b"{", path=mount), 400)
        _is_refused(ask(way, method="GET", path=mount), 405)


def test_it_needs_neither_users_nor_rest_framework_among_the_apps(payloads: list[Any]) -> None:
    for app in ("django.contrib.auth", "django.contrib.contenttypes", "rest_framework", "adrf"):
        assert not apps.is_installed(app)
    assert {ask(way, BODY).status for way in WAYS} == {200}


def test_a_router_gives_it_one_route_and_no_detail_page() -> None:
    with override_settings(ROOT_URLCONF="tests.project.urls_mounts"):
        for mount in ("/adrf-simple/events/7/", "/drf-simple/events/7/"):
            assert ask("wsgi", BODY, path=mount).status == 404
        assert reverse("events-list") in MOUNTS
        assert reverse("aevents:receive") == "/events/"


# --- in hostile projects ---


@pytest.mark.parametrize(
    ("project", "other"),
    [("hostile", "/plain/drf/"), ("guarded", "/plain/"), ("atomic", "/plain/")],
)
def test_it_works_in_a_project_where_other_views_do_not(project: str, other: str, tmp_path: Path) -> None:
    # Given a project by its settings, in a process of its own
    notes = database.make(tmp_path / "notes.sqlite3")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.project.ask_all"],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": f"tests.project.settings_{project}",
            "NOTES_DB": str(notes),
        },
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    replies = json.loads(done.stdout)
    # Then every mount answers as it does anywhere, under ASGI and WSGI
    expected = {
        "event": 200,
        "event from a browser": 200,
        "no json": 400,
        "form": 415,
        "get": 405,
        "options": 405,
    }
    ours = [reply for reply in replies if reply["mount"] in MOUNTS]
    assert len(ours) == len(THROUGH_DJANGO) * len(MOUNTS) * len(expected)
    for reply in ours:
        assert reply["status"] == expected[reply["request"]], reply
        assert reply["type"] == "application/json", reply
        content = json.loads(reply["body"])
        assert content.get("status") == "handled" or content["detail"], reply
        assert reply["status"] != 405 or reply["allow"] == "POST", reply
    # And every event has run both its handlers, which have both committed
    written = 2 * len(THROUGH_DJANGO) * len(MOUNTS)
    assert len(database.texts(notes)) == 2 * written
    # And it was not for nothing: a view that pins nothing fares worse
    others = [reply for reply in replies if reply["mount"] == other]
    assert len(others) == len(THROUGH_DJANGO)
    assert any(reply["status"] != 200 for reply in others)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("accept", ["text/html", BROWSER, "image/png", "nonsense", "", "*/*;q=0"])
def test_whatever_the_client_accepts_it_gets_json(way: str, accept: str, payloads: list[Any]) -> None:
    headers = {**JSON, "accept": accept}
    assert ask(way, BODY, headers).content["status"] == "handled"
    _is_refused(ask(way, b"", headers), 400)
    _is_refused(ask(way, b"", headers, method="GET"), 405)
    assert ask(way, BODY, headers, path="/events/?format=html&_method=get").content["status"] == "handled"


class AsyncNobody(BasePermission):
    async def has_permission(self, request: Any, view: Any) -> bool:  # type: ignore[override]  # as adrf has it
        return False


class Nobody(BasePermission):
    message = "Nobody may."

    def has_permission(self, request: Any, view: Any) -> bool:
        return False


class Never(BaseThrottle):
    def allow_request(self, request: Any, view: Any) -> bool:
        return False

    def wait(self) -> float:
        return 7.0


class AsyncTeapot(BaseAuthentication):
    async def authenticate(self, request: Any) -> Any:  # type: ignore[override]  # as adrf has it
        return "a user", request.META.get("HTTP_X_TOKEN")


class OnlyWithToken(BasePermission):
    def has_permission(self, request: Any, view: Any) -> bool:
        return bool(request.user == "a user" and request.auth == "token")


@pytest.mark.parametrize("way", WAYS)
def test_a_subclass_may_have_policies_of_its_own(way: str, payloads: list[Any]) -> None:
    class Closed(EventViewSet):
        permission_classes = (Nobody,)

    class AsyncClosed(EventViewSet):
        permission_classes = (AsyncNobody,)

    class Busy(EventViewSet):
        throttle_classes = (Never,)

    class Tokens(EventViewSet):
        authentication_classes = (AsyncTeapot,)
        permission_classes = (OnlyWithToken,)

    with _urls(
        path("closed/", Closed.as_view({"post": "create"})),
        path("async-closed/", AsyncClosed.as_view({"post": "create"})),
        path("busy/", Busy.as_view({"post": "create"})),
        path("tokens/", Tokens.as_view({"post": "create"})),
    ):
        assert _is_refused(ask(way, BODY, path="/closed/"), 403) == "Nobody may."
        _is_refused(ask(way, BODY, path="/async-closed/"), 403)
        busy = ask(way, BODY, path="/busy/")
        _is_refused(busy, 429)
        assert busy.headers["retry-after"] == "7"
        _is_refused(ask(way, BODY, path="/tokens/"), 403)
        assert payloads == []
        reply = ask(way, BODY, {**JSON, "x-token": "token"}, path="/tokens/")
    assert reply.content["status"] == "handled"
    assert len(payloads) == 1


# --- what bad input gets ---

NESTED = b"[" * 100_000
BAD_REQUESTS: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "no body": (400, b"", JSON),
    "blanks": (400, b"  \r\n", JSON),
    "not JSON": (400, b"hello", JSON),
    "not UTF-8": (400, '{"event_type":"ü","payload":1}'.encode("latin-1"), JSON),
    "UTF-16": (400, BODY.decode().encode("utf-16"), JSON),
    "UTF-16 and says so": (
        415,
        BODY.decode().encode("utf-16"),
        {"content-type": "application/json; charset=utf-16"},
    ),
    "a byte order mark": (400, b"\xef\xbb\xbf" + BODY, JSON),
    "a list": (400, b"[" + BODY + b"]", JSON),
    "null": (400, b"null", JSON),
    "event_type missing": (400, b'{"payload":{}}', JSON),
    "event_type no string": (400, b'{"event_type":7,"payload":{}}', JSON),
    "event_type empty": (400, b'{"event_type":"","payload":{}}', JSON),
    "event_type too long": (400, b'{"event_type":"' + b"x" * 201 + b'","payload":{}}', JSON),
    "event_type with control characters": (400, b'{"event_type":"a\\u0007","payload":{}}', JSON),
    "payload missing": (400, b'{"event_type":"user-created"}', JSON),
    "nested deeply": (400, b'{"event_type":"a","payload":' + b"[" * 300 + b"]" * 300 + b"}", JSON),
    "nested deeply, spaced": (400, b'{"event_type": "a", "payload": ' + b"[" * 300 + b"]" * 300 + b"}", JSON),
    "100000 brackets": (400, NESTED, JSON),
    "100000 brackets, closed": (400, NESTED + b"]" * 100_000, JSON),
    "100000 brackets in the payload": (400, b'{"event_type":"a","payload":' + NESTED, JSON),
    "gzip": (415, b"\x1f\x8b\x08\x00", {**JSON, "content-encoding": "gzip"}),
    "gzip that does not say so": (400, b"\x1f\x8b\x08\x00", JSON),
    "a form": (415, b"event_type=a&payload=1", {"content-type": "application/x-www-form-urlencoded"}),
    "a broken multipart form": (415, BODY, {"content-type": "multipart/form-data"}),
    "a multipart form": (
        415,
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n',
        {"content-type": "multipart/form-data; boundary=x"},
    ),
    "plain text": (415, BODY, {"content-type": "text/plain"}),
    "a content type of nonsense": (415, BODY, {"content-type": ";;;=/\xff"}),
    "no content type": (415, BODY, {}),
    "an unknown charset": (415, BODY, {"content-type": "application/json; charset=klingon"}),
    "over 1 MiB": (413, b'{"event_type":"a","payload":"' + b"x" * MIB + b'"}', JSON),
    "5 MiB": (413, b"x" * 5 * MIB, JSON),
    "two ids": (400, BODY, {**JSON, "webhook-id": "1", "ce-id": "2"}),
    "another ce-type": (400, BODY, {**JSON, "ce-type": "other"}),
    "an id in Latin-1": (400, BODY, {**JSON, "webhook-id": "\x80"}),
    "an id too long": (400, BODY, {**JSON, "webhook-id": "x" * 201}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chunked", [False, True], ids=["with length", "chunked"])
@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_input_gets_the_right_4xx(way: str, chunked: bool, case: str, payloads: list[Any]) -> None:
    status, body, headers = BAD_REQUESTS[case]
    _is_refused(ask(way, body, headers, chunked=chunked), status)
    assert payloads == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_a_wrong_method_gets_405_and_is_told_the_right_one(
    way: str, method: str, payloads: list[Any]
) -> None:
    reply = ask(way, BODY, method=method)
    assert reply.status == 405
    assert reply.headers["allow"] == "POST"
    if method != "HEAD":
        assert method in _is_refused(reply, 405)
    assert payloads == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", ["-1", "x", "1.5", "\xd9\xa1", "\xb2", "1_0"])
def test_a_content_length_that_is_no_number_gets_400(way: str, length: str) -> None:
    _is_refused(ask(way, BODY, {**JSON, "content-length": length}), 400)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [str(MIB + 1), "9" * 18, "9" * 5000])
def test_a_content_length_over_the_limit_is_enough_to_be_refused(way: str, length: str) -> None:
    _is_refused(ask(way, BODY, {**JSON, "content-length": length}), 413)


def test_a_content_length_that_understates_changes_nothing() -> None:
    # Given an ASGI server that passes on more than was announced
    body = b'{"event_type":"a","payload":"' + b"x" * MIB + b'"}'
    _is_refused(asyncio.run(ask_asgi(body, {**JSON, "content-length": "10"})), 413)


class _Counting(io.BytesIO):
    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.sizes: list[int] = []

    def read(self, size: int | None = -1, /) -> bytes:
        self.sizes.append(-1 if size is None else size)
        return super().read(size)


def test_of_a_body_without_end_one_byte_over_the_limit_is_kept_and_8_mib_more_at_most_are_read() -> None:
    endless = _Counting(b" " * 64 * MIB)
    _is_refused(ask_wsgi(endless, {**JSON, "transfer-encoding": "chunked"}), 413)
    assert endless.sizes[0] == MIB + 1
    assert max(endless.sizes[1:]) <= 64 * 1024
    assert endless.tell() <= 9 * MIB + 1


@pytest.mark.parametrize("way", WAYS)
def test_the_limit_is_a_setting(way: str) -> None:
    # Given a limit above Django's own for bodies in memory
    body = b'{"event_type":"user-created","payload":"' + b"x" * 3 * MIB + b'"}'
    with override_settings(AEVENTS={**AEVENTS, "LIMITS": {"BODY_BYTES": 4 * MIB}}):
        for chunked in (False, True):
            assert ask(way, body, chunked=chunked).content["status"] == "unhandled"
    with override_settings(AEVENTS={**AEVENTS, "LIMITS": {"BODY_BYTES": 10}}):
        assert "10 bytes" in _is_refused(ask(way, BODY), 413)


@pytest.mark.parametrize("way", WAYS)
def test_a_chunked_event_is_an_event(way: str, payloads: list[Any]) -> None:
    assert ask(way, BODY, chunked=True).content["status"] == "handled"
    assert payloads == [{"user_id": 7}]


class BrokenPipe(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise BrokenPipeError("the client left")


@pytest.mark.parametrize("headers", [{"content-length": "99"}, {"transfer-encoding": "chunked"}], ids=repr)
def test_a_body_that_breaks_off_is_refused(headers: dict[str, str]) -> None:
    assert "could not be read" in _is_refused(ask_wsgi(BrokenPipe(), {**JSON, **headers}), 400)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reads", ["reads_the_body", "reads_the_form"])
def test_a_middleware_may_have_read_the_body_before(way: str, reads: str, payloads: list[Any]) -> None:
    with override_settings(MIDDLEWARE=[f"tests.project.middleware.{reads}"]):
        assert ask(way, BODY).content["status"] == "handled"
        _is_refused(ask(way, b"{"), 400)
        _is_refused(ask(way, b"a=1", {"content-type": "application/x-www-form-urlencoded"}), 415)
        _is_refused(ask(way, BODY, {"content-type": "multipart/form-data; boundary=x"}), 415)
    assert payloads == [{"user_id": 7}]


@pytest.mark.parametrize("way", THROUGH_DJANGO)  # no middleware sees what comes in by the short way
def test_a_body_that_a_middleware_kept_for_itself_is_refused_not_halved(
    way: str, payloads: list[Any]
) -> None:
    with override_settings(MIDDLEWARE=["tests.project.middleware.reads_a_little"]):
        assert "could not be read" in _is_refused(ask(way, BODY), 400)
    assert payloads == []


@pytest.mark.parametrize("way", WAYS)
def test_a_failing_handler_gets_503_as_json(way: str) -> None:
    def bad(payload: Any) -> None:
        raise ValueError("a secret")

    subscribe_to("user-created", bad, name="bad")
    for debug in (False, True):
        with override_settings(DEBUG=debug):
            reply = ask(way, BODY, {**JSON, "accept": "text/html"})
        assert reply.status == 503
        assert reply.content["detail"] == "These handlers failed: bad"
        assert b"secret" not in reply.body


@pytest.mark.parametrize("way", WAYS)
def test_the_headers_reach_the_event(way: str) -> None:
    seen: list[Any] = []
    subscribe_to("grüße", lambda p: seen.append(current_event()), name="handler")
    headers = {
        **JSON,
        "Webhook-ID": f"id-1-{way}",
        "ce-id": f"id-1-{way}",
        "ce-type": "gr%C3%BC%C3%9Fe",
        "ce-source": "/accounts",
        "ce-time": "2026-11-23T12:00:00Z",
        "ce-partitionkey": "user%207",
        "ce-causationid": "cause",
        "ce-correlationid": "first",
        "ce-hops": "3",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    reply = ask(way, '{"event_type":"grüße","payload":null}', headers)
    assert reply.content == {"id": f"id-1-{way}", "status": "handled"}
    [event] = seen
    assert (event.source, event.time.isoformat(), event.key) == (
        "accounts",
        "2026-11-23T12:00:00+00:00",
        "user 7",
    )
    assert (event.cause, event.correlation, event.hops) == ("cause", "first", 3)
    assert event.trace == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("way", WAYS)
def test_a_header_with_underscores_is_not_taken_for_ours(way: str) -> None:
    # Servers under WSGI drop such headers themselves; under ASGI Django and the short way do.
    if way != "wsgi":
        reply = ask(way, BODY, {**JSON, "webhook_id": "forged"})
        assert reply.content["id"] != "forged"
    reply = ask(way, BODY, {**JSON, "webhook-id": f"true-{way}"})
    assert reply.content["id"] == f"true-{way}"


# --- no thread for a request ---


@pytest.fixture
def threads_used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads started, and of the pools given work, since the test began."""
    used: list[str] = []
    start = threading.Thread.start

    def started(self: threading.Thread) -> None:
        used.append(f"thread {self.name}")
        start(self)

    def watched(submit: Callable[..., Any]) -> Callable[..., Any]:
        def submitted(self: Any, *args: Any, **kwargs: Any) -> Any:
            used.append(f"pool {getattr(self, '_thread_name_prefix', None) or self._name}")
            return submit(self, *args, **kwargs)

        return submitted

    monkeypatch.setattr(threading.Thread, "start", started)
    for pool in (ThreadPoolExecutor, DaemonPool):
        monkeypatch.setattr(pool, "submit", watched(pool.submit))
    return used


def _asgi_request(body: bytes = BODY, method: str = "POST", content_type: str = JSON_TYPE) -> ASGIRequest:
    return AsyncRequestFactory().generic(method, "/events/", body, content_type)


async def test_a_hop_would_be_seen(threads_used: list[str]) -> None:
    async with ThreadSensitiveContext():  # as Django's ASGI handler has it around every request
        await sync_to_async(int)()
    assert [use.split()[0] for use in threads_used[:2]] == ["pool", "thread"]


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (200, lambda: _asgi_request()),
        (200, lambda: _asgi_request(b'{"event_type":"nobody-knows","payload":1}')),
        (400, lambda: _asgi_request(b"{")),
        (400, lambda: _asgi_request(b" ")),
        (405, lambda: _asgi_request(method="GET")),
        (413, lambda: _asgi_request(b"x" * (MIB + 1))),
        (415, lambda: _asgi_request(content_type="text/plain")),
        (503, lambda: _asgi_request(b'{"event_type":"bad","payload":1}')),
    ],
)
async def test_under_asgi_a_request_uses_no_thread(
    status: int, request_: Any, threads_used: list[str]
) -> None:
    # Given two async handlers, one of which fails
    async def handler(payload: Any) -> None:
        await asyncio.sleep(0)

    async def bad(payload: Any) -> None:
        raise ValueError

    subscribe_to("user-created", handler, name="handler")
    subscribe_to("user-created", handler, name="second")
    subscribe_to("bad", bad, name="bad")
    view = resolve("/events/").func
    # When our view answers, as Django awaits it
    async with ThreadSensitiveContext():
        response = await view(request_())
    # Then nothing left the loop, and what came back needs no rendering, for which Django takes a thread
    assert response.status_code == status
    assert not hasattr(response, "render")
    assert threads_used == []


async def test_a_sync_handler_takes_one_hop_into_threads_that_are_kept(threads_used: list[str]) -> None:
    names: list[str] = []
    subscribe_to("user-created", lambda p: names.append(threading.current_thread().name), name="sync")
    view = resolve("/events/").func
    for _ in range(20):
        async with ThreadSensitiveContext():
            assert (await view(_asgi_request())).status_code == 200
    assert [use for use in threads_used if use.startswith("pool")] == ["pool aevents-handler"] * 20
    started = [use for use in threads_used if use.startswith("thread")]
    assert len(started) <= 8
    assert len(set(names)) <= 8


# --- the class itself ---


def test_an_unpinned_policy_would_be_seen() -> None:
    # Given every attribute that REST framework's views take from the project's settings
    from_settings = {
        name
        for name in vars(APIView)
        if name.endswith(("_class", "_classes")) or name in ("settings", "schema")
    }
    assert "permission_classes" in from_settings
    # Then each of them is set on the class
    assert from_settings <= set(vars(EventViewSet))


def test_the_path_around_it_may_carry_names(payloads: list[Any]) -> None:
    with _urls(path("<int:year>/<str:request_id>/<str:format>/", include("aevents.urls"))):
        assert ask("asgi", BODY, path="/2026/x/html/").content["status"] == "handled"
