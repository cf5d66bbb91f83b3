"""The service `shop` on the database of the fixture `store`; it tells `peer` at PEER_URL."""

import json
import os

from tests import databases

SECRET_KEY = "tests"
DEBUG = False
USE_TZ = True
INSTALLED_APPS = ["aevents", "tests.worker_project"]
MIDDLEWARE: list[str] = []
DATABASES = {"default": databases.from_environment()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"aevents": {"handlers": ["console"], "level": "INFO"}},
}
AEVENTS = {
    "SERVICE": "shop",
    "UNSIGNED": "accept",
    "SERVICES": {"peer": os.environ.get("PEER_URL", "")},
    "LIMITS": json.loads(os.environ.get("LIMITS", "{}")),
    # What a test has besides, as JSON.
    **json.loads(os.environ.get("AEVENTS", "{}")),
}
