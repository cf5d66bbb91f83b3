from django.urls import include, path

from aevents.demo.orders.shop import views

urlpatterns = [
    path("events/", include("aevents.urls")),
    path("orders/", views.place_order),
    path("orders/<int:order_id>/", views.show_order),
    path("orders/<int:order_id>/cancel/", views.cancel_order),
]
