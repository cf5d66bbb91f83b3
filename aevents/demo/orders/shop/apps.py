from django.apps import AppConfig

from aevents import subscribe_to


class ShopConfig(AppConfig):
    name = "aevents.demo.orders.shop"

    def ready(self) -> None:
        from aevents.demo.orders.shop import event_handlers

        subscribe_to("user-created", event_handlers.add_customer)
        subscribe_to("payment-received", event_handlers.mark_paid)
