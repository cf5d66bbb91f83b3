"""A project behind every middleware that Django brings, and some of the sort that people write."""

from tests.project.settings_notes import *  # noqa: F403 - its database and handlers

ROOT_URLCONF = "tests.project.urls_mounts"
LOGIN_URL = "/login/"
USE_I18N = True
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    *INSTALLED_APPS,  # noqa: F405
]
MIDDLEWARE = [
    "tests.project.middleware.in_a_thread",
    "tests.project.middleware.on_the_loop",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "django.middleware.http.ConditionalGetMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "tests.project.middleware.reads_the_body",
]
