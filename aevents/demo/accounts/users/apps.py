from django.apps import AppConfig

from aevents import subscribe_to


class UsersConfig(AppConfig):
    name = "aevents.demo.accounts.users"

    def ready(self) -> None:
        from aevents.demo.accounts.users import event_handlers

        subscribe_to("payment-received", event_handlers.mark_customer)
