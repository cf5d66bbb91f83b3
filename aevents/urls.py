"""`path("events/", include("aevents.urls"))`: the one endpoint."""

from django.urls import path

from aevents.views import EventViewSet

app_name = "aevents"
urlpatterns = [path("", EventViewSet.as_view({"post": "create"}), name="receive")]
