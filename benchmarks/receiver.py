"""A Django project in one file: the same work behind aevents' two ways in and behind a plain async view."""

from __future__ import annotations

from typing import Any

import django
import orjson
from django.conf import settings
from django.http import HttpRequest, HttpResponse

from benchmarks.clients import SECRET

settings.configure(
    SECRET_KEY="benchmarks",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF="benchmarks.receiver",
    INSTALLED_APPS=["aevents"],
    USE_TZ=True,
    AEVENTS={"SERVICE": "receiver", "UNSIGNED": "accept", "SECRETS": [SECRET]},
)
django.setup()

from django.core.asgi import get_asgi_application  # noqa: E402 - Django first
from django.urls import include, path  # noqa: E402

from aevents import subscribe_to  # noqa: E402
from aevents.asgi import receiver  # noqa: E402


async def handle(payload: dict[str, Any]) -> None:
    """The work: none."""


async def plain(request: HttpRequest) -> HttpResponse:
    """What one would write by hand: read the body, call the handler, answer with JSON."""
    if request.method != "POST":
        return HttpResponse(status=405)
    event = orjson.loads(request.body)
    await handle(event["payload"])
    return HttpResponse(orjson.dumps({"status": "handled"}), content_type="application/json")


for event_type in ("user-created", "order-placed"):
    subscribe_to(event_type, handle)
urlpatterns = [
    path("through-django/", include("aevents.urls", namespace="through-django")),
    path("events/", include("aevents.urls")),
    path("plain/", plain),
]
application = get_asgi_application()
short_way = receiver(application)  # events/ is before Django there, and through-django/ is not
