"""Every way to mount the endpoint that the documentation names, and some that nobody thought of."""

from adrf import routers as adrf_routers
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from rest_framework import routers as drf_routers
from rest_framework.response import Response
from rest_framework.views import APIView

from aevents.views import EventViewSet


async def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("a view like any other")


class Plain(APIView):
    def post(self, request: object) -> Response:
        return Response("a view like any other")


def _routed(router: drf_routers.SimpleRouter, prefix: str = "events") -> list[object]:
    router.register(prefix, EventViewSet, basename="events")
    return router.urls


urlpatterns = [
    path("events/", include("aevents.urls")),
    path("again/events/", include("aevents.urls", namespace="again")),
    path("tenants/<slug:tenant>/events/", include("aevents.urls", namespace="tenant")),
    path("create/", EventViewSet.as_view({"post": "create"})),
    path("acreate/", EventViewSet.as_view({"post": "acreate"})),
    path("no-slash", EventViewSet.as_view({"post": "create"})),
    path("adrf-simple/", include(_routed(adrf_routers.SimpleRouter()))),
    path("adrf-default/", include(_routed(adrf_routers.DefaultRouter()))),
    path("adrf-bare/", include(_routed(adrf_routers.SimpleRouter(trailing_slash=False), ""))),
    path("drf-simple/", include(_routed(drf_routers.SimpleRouter()))),
    path("drf-default/", include(_routed(drf_routers.DefaultRouter()))),
    path("plain/", plain),
    path("plain/drf/", Plain.as_view()),
]

MOUNTS = (
    "/events/",
    "/again/events/",
    "/tenants/acme/events/",
    "/create/",
    "/acreate/",
    "/no-slash",
    "/adrf-simple/events/",
    "/adrf-default/events/",
    "/adrf-default/events.json",
    "/adrf-bare/",
    "/drf-simple/events/",
    "/drf-default/events/",
    "/drf-default/events.json",
)
