"""The service `shop`: it tells `peer` at PEER_URL of all that begins with `told-`, itself of `own-`."""

import json
import os

SECRET_KEY = "tests"
DEBUG = False
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.process_project.urls"
WSGI_APPLICATION = "tests.process_project.wsgi.application"
INSTALLED_APPS = ["aevents", "tests.process_project"]
MIDDLEWARE: list[str] = []
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"]}}
AEVENTS = {
    "SERVICE": "shop",
    "UNSIGNED": "accept",
    "SERVICES": {"peer": os.environ.get("PEER_URL", "")},
    "SUBSCRIPTIONS": {"told-*": ["peer"], "own-*": ["shop"]},
    "STORE": None,  # what is told here is what becomes of events without a store
    "LIMITS": json.loads(os.environ.get("LIMITS", "{}")),
}
