"""A Django project in one file that writes a row for each order: in a sync view, and behind an inbox.

On the database of `STORE_URL`, whose connections both ways keep. A third handler does nothing: what the
inbox itself costs. With `BENCH_SECRET` in the environment, what has no signature is refused.
"""

from __future__ import annotations

import os
from typing import Any

import django
import orjson
from django.conf import settings
from django.http import HttpRequest, HttpResponse

from tests import databases

_SECRET = os.environ.get("BENCH_SECRET", "")
_TRUST = {"SECRETS": [_SECRET], "UNSIGNED": "refuse"} if _SECRET else {"UNSIGNED": "accept"}

settings.configure(
    SECRET_KEY="benchmarks",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF="benchmarks.writer",
    INSTALLED_APPS=["aevents", "benchmarks.shop"],
    DATABASES={"default": {**databases.from_environment(), "CONN_MAX_AGE": None}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
    AEVENTS={"SERVICE": "writer", "INBOX": True, **_TRUST},
)
django.setup()

from django.core.asgi import get_asgi_application  # noqa: E402 - Django first
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import transaction  # noqa: E402
from django.urls import include, path  # noqa: E402

from aevents import subscribe_to  # noqa: E402
from aevents.asgi import receiver  # noqa: E402
from benchmarks.shop.models import Order  # noqa: E402


def order_of(payload: dict[str, Any]) -> Order:
    """Return what is written for an event."""
    return Order(customer=payload["user_id"], total="9.99", note=payload["note"])


def write(payload: dict[str, Any]) -> None:
    """The work: one row."""
    order_of(payload).save(force_insert=True)


def write_many(payloads: list[dict[str, Any]]) -> None:
    """The same for all that waits."""
    Order.objects.bulk_create([order_of(payload) for payload in payloads])


def do_nothing(payload: dict[str, Any]) -> None:
    """No work at all."""


def view(request: HttpRequest) -> HttpResponse:
    """What one would write by hand: a transaction, a row, an answer."""
    with transaction.atomic():
        write(orjson.loads(request.body)["payload"])
    return HttpResponse(orjson.dumps({"status": "handled"}), content_type="application/json")


subscribe_to("user-created", do_nothing)
subscribe_to("row-by-row", write)
subscribe_to("many-at-once", write_many, batch=True)
urlpatterns = [path("events/", include("aevents.urls")), path("write/", view)]
wsgi = get_wsgi_application()
short_way = receiver(get_asgi_application())
