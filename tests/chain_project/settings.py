import os

from tests.settings import *  # noqa: F403 - the tests' settings, for a service with a name of its own

INSTALLED_APPS = ["aevents", "tests.chain_project"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
AEVENTS = {
    "SERVICE": os.environ["CHAIN_SERVICE"],
    "UNSIGNED": "accept",
    "SERVICES": "tests.chain_project.fleet.SERVICES",
    "SUBSCRIPTIONS": {
        "ping": ["one"],
        "pong": ["two"],
        "begun": [os.environ["CHAIN_SERVICE"]],
        "continued": [os.environ["CHAIN_SERVICE"]],
        "ended": ["tests"],
    },
}
LOGGING = {
    "version": 1,
    "formatters": {"plain": {"format": "%(levelname)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {"aevents": {"handlers": ["console"], "level": "DEBUG"}},
}
