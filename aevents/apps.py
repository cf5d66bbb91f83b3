"""The Django app: finds the handlers, registers the checks. Starts nothing."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks
from django.utils.module_loading import autodiscover_modules

from aevents.checks import check_settings
from aevents.settings import conf


class AeventsConfig(AppConfig):
    name = "aevents"
    verbose_name = "Events"

    def ready(self) -> None:
        checks.register(check_settings, "aevents")
        if conf().AUTODISCOVER:
            autodiscover_modules("events")
