"""Settings of a user's project: as for production, with nothing in them for the tests."""

import os

SECRET_KEY = "kit"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
ROOT_URLCONF = "kit_urls"
INSTALLED_APPS = ["aevents", "shop"]
MIDDLEWARE = []
STATIC_URL = "/static/"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AEVENTS = {
    "SERVICE": "shop",
    # A socket that must never see a connection: `test_testing_kit.py` listens there.
    "SERVICES": {"stock": os.environ["STOCK_URL"]},
    "SUBSCRIPTIONS": {"order-*": ["stock", "shop"], "told": ["stock"]},
    "UNSIGNED": "accept",
}
