from django.urls import include, path

urlpatterns = [path("events/", include("aevents.urls"))]
