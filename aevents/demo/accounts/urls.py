from django.urls import include, path

from aevents.demo.accounts.users import views

urlpatterns = [
    path("events/", include("aevents.urls")),
    path("sign-up/", views.sign_up),
    path("sign-out/", views.sign_out),
]
