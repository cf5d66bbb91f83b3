from django.urls import include, path

from tests.process_project import views

urlpatterns = [
    path("", views.who),
    path("emit/<int:n>", views.emits),
    path("aemit/<int:n>", views.aemits),
    path("hand-over/<int:n>", views.hands_over),
    path("both/<int:n>", views.does_both),
    path("events/", include("aevents.urls")),
]
