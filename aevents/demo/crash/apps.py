from django.apps import AppConfig

LEASE_S = 4.0


class CrashConfig(AppConfig):
    name = "aevents.demo.crash"

    def ready(self) -> None:
        from aevents import tables

        # What a killed process had begun is free again when its lease ends: after a minute, and here
        # sooner, as nobody wants to watch for so long.
        tables.LEASE_S = LEASE_S
