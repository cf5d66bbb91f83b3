"""The Django app: finds the handlers, and refuses secrets that are none. Starts nothing."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import autodiscover_modules

from aevents import letters, routes
from aevents.relay import is_command
from aevents.settings import conf


class AeventsConfig(AppConfig):
    name = "aevents"
    verbose_name = "Events"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # Servers run no checks, and a fleet that believes it signs must not find out by what it has lost.
        # Management commands run the checks, and `aevents secret` makes the secret that is missing.
        mistakes = () if is_command() else routes.mistakes_in_secrets()
        if mistakes:
            raise ImproperlyConfigured("; ".join(mistakes))
        if conf().LISTEN:
            letters.take_back()  # in all processes: who tries again what was refused need not listen
        if conf().AUTODISCOVER:
            autodiscover_modules("events")
