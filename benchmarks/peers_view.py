"""A Django project in one file with a sync view of Django REST framework, for `test_peers.py`.

No middleware and no authentication, as in `receiver.py`: what is compared is the way there.
"""

from __future__ import annotations

from typing import Any

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="benchmarks",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF="benchmarks.peers_view",
    INSTALLED_APPS=["rest_framework"],
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "DEFAULT_PERMISSION_CLASSES": [],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
        "UNAUTHENTICATED_USER": None,
    },
    USE_TZ=True,
)
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402 - Django first
from django.urls import path  # noqa: E402
from rest_framework.request import Request  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402


def handle(payload: dict[str, Any]) -> None:
    """The work: none."""


class Events(APIView):
    """What one would write by hand: call the handler, answer with JSON."""

    def post(self, request: Request) -> Response:
        handle(request.data["payload"])
        return Response({"status": "handled"})


urlpatterns = [path("events/", Events.as_view())]
wsgi = get_wsgi_application()
