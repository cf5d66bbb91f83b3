from django.apps import AppConfig

from aevents import subscribe_to


class BillingConfig(AppConfig):
    name = "aevents.demo.payments.billing"

    def ready(self) -> None:
        from aevents.demo.payments.billing import event_handlers

        subscribe_to("user-created", event_handlers.open_account)
        subscribe_to("order-placed", event_handlers.charge)
        subscribe_to("order-cancelled", event_handlers.refund)
