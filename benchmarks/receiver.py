"""A Django project in one file: the same work behind aevents' two ways in and behind two ways by hand.

By hand: a plain async Django view, and an ASGI callable without Django. With `BENCH_SECRET` in the
environment aevents and the plain view verify the signature of what arrives, and refuse what has none.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import os
from typing import Any

import django
import orjson
from django.conf import settings
from django.http import HttpRequest, HttpResponse

_SECRET = os.environ.get("BENCH_SECRET", "")
_KEY = base64.b64decode(_SECRET.removeprefix("whsec_"))
_TRUST = {"SECRETS": [_SECRET], "UNSIGNED": "refuse"} if _SECRET else {"UNSIGNED": "accept"}

settings.configure(
    SECRET_KEY="benchmarks",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF="benchmarks.receiver",
    INSTALLED_APPS=["aevents"],
    USE_TZ=True,
    AEVENTS={"SERVICE": "receiver", **_TRUST},
)
django.setup()

from django.core.asgi import get_asgi_application  # noqa: E402 - Django first
from django.urls import include, path  # noqa: E402

from aevents import intake, subscribe_to  # noqa: E402
from aevents.asgi import receiver  # noqa: E402


async def handle(payload: dict[str, Any]) -> None:
    """The work: none."""


taken_slowly = {"count": 0}


async def handle_slowly(payload: dict[str, Any]) -> None:
    """Work that waits: a thousand events a second, where two batches are under way."""
    await asyncio.sleep(2 * intake.AT_ONCE / 1000)
    taken_slowly["count"] += 1


async def plain(request: HttpRequest) -> HttpResponse:
    """What one would write by hand: read the body, call the handler, answer with JSON."""
    if request.method != "POST":
        return HttpResponse(status=405)
    if _KEY and not _is_signed(request):
        return HttpResponse(status=401)
    event = orjson.loads(request.body)
    await handle(event["payload"])
    return HttpResponse(orjson.dumps({"status": "handled"}), content_type="application/json")


def _is_signed(request: HttpRequest) -> bool:
    headers = request.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request.body
    wanted = "v1," + base64.b64encode(hmac.digest(_KEY, signed, "sha256")).decode()
    return hmac.compare_digest(headers["webhook-signature"], wanted)


async def raw(scope: Any, receive: Any, send: Any) -> None:
    """The same without Django: as little as an ASGI callable needs for it."""
    body, is_whole = b"", False
    while not is_whole:
        message = await receive()
        body += message.get("body", b"")
        is_whole = not message.get("more_body")
    event = orjson.loads(body)
    await handle(event["payload"])
    answer = orjson.dumps({"status": "handled"})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


for event_type in ("user-created", "order-placed"):
    subscribe_to(event_type, handle)
subscribe_to("taken-slowly", handle_slowly)
urlpatterns = [
    path("through-django/", include("aevents.urls", namespace="through-django")),
    path("events/", include("aevents.urls")),
    path("plain/", plain),
]
application = get_asgi_application()
short_way = receiver(application)  # events/ is before Django there, and through-django/ is not
