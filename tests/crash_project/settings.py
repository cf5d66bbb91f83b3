"""Two services, each with a database of its own: `shop` in "default", `orders` in "orders".

Which of them a process is, is its `AEVENTS`, which `running.py` sets in each child by itself.
"""

import os

from tests import databases

SECRET_KEY = "tests"
DEBUG = False
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.crash_project.urls"
INSTALLED_APPS = ["aevents", "tests.project", "tests.crash_project"]
MIDDLEWARE: list[str] = []
_KEPT = {"CONN_MAX_AGE": 600}  # as with any handler that runs often: a connection each is most of its cost
DATABASES = {
    "default": {**databases.configuration(os.environ["STORE_URL"]), **_KEPT},
    "orders": {**databases.configuration(os.environ.get("ORDERS_URL") or os.environ["STORE_URL"]), **_KEPT},
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "brief": {"format": "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"},
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "brief"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}
LOGGING_CONFIG = None  # by each child itself, whose stderr is another one
AEVENTS = {"SERVICE": "nobody"}
