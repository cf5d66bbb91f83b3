"""A project with two databases and a transaction around every view in each of them."""

from tests.project.settings_notes import *  # noqa: F403 - its database and handlers

ROOT_URLCONF = "tests.project.urls_mounts"
DATABASES = {
    "default": {**DATABASES["default"], "ATOMIC_REQUESTS": True},  # noqa: F405
    "other": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "ATOMIC_REQUESTS": True},
}
