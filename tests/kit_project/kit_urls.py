from django.urls import include, path
from shop import views

urlpatterns = [
    path("events/", include("aevents.urls")),
    path("orders/", views.order),
    path("aorders/", views.aorder),
]
