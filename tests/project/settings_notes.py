"""A service under a real server: the app `notes`, its rows in the SQLite file `NOTES_DB`."""

import json
import os

from tests.settings import *  # noqa: F403 - the tests' settings with a database that can be looked into

INSTALLED_APPS = ["aevents", "tests.project", "tests.project.notes"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["NOTES_DB"],
        # Many threads write: each waits for its turn instead of failing at once.
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
        "CONN_MAX_AGE": 0,
    },
}
AEVENTS = {
    "SERVICE": "notes",
    "UNSIGNED": "accept",
    "SECRETS": json.loads(os.environ.get("SECRETS", "[]")),
}
