"""A project with the admin. The users are in one database, the store is in another, `default` has nothing."""

from __future__ import annotations

import os
from pathlib import Path

from tests.databases import configuration

_FOLDER = Path(os.environ.get("ADMIN_PROJECT", "."))  # where it is run by itself: see `sample.py`

SECRET_KEY = "tests"
DEBUG = False
USE_TZ = True
TIME_ZONE = "Europe/Berlin"  # which no time of a page is in
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.admin_project.urls"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "aevents",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STATIC_URL = "static/"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
    "people": configuration(f"sqlite:///{_FOLDER}/people.sqlite3"),
    "store": configuration(f"sqlite:///{_FOLDER}/store.sqlite3"),
}
DATABASE_ROUTERS = ["tests.admin_project.routers.People"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AEVENTS = {
    "SERVICE": "accounts",
    "SERVICES": {"payments": "https://payments.internal/", "orders": "https://orders.internal/"},
    "UNSIGNED": "accept",
    "STORE": "store",
    "RELAY": False,
    "HISTORY_DAYS": 7,
}
