"""A project whose REST framework shuts everybody out, and breaks for those it lets in."""

from typing import Any, NoReturn

from rest_framework.negotiation import BaseContentNegotiation

from tests.project.settings_notes import *  # noqa: F403 - its database and handlers

ROOT_URLCONF = "tests.project.urls_mounts"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "rest_framework",
    "adrf",
    *INSTALLED_APPS,  # noqa: F405
]


def fail(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("nobody shall call this for an event")


class Failing(BaseContentNegotiation):
    select_parser = fail
    select_renderer = fail


REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework.authentication.SessionAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_THROTTLE_CLASSES": ["rest_framework.throttling.AnonRateThrottle"],
    "DEFAULT_THROTTLE_RATES": {"anon": "1/day"},
    "DEFAULT_RENDERER_CLASSES": [
        "rest_framework.renderers.BrowsableAPIRenderer",
        "rest_framework.renderers.AdminRenderer",
    ],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.FormParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "tests.project.settings_hostile.Failing",
    "DEFAULT_VERSIONING_CLASS": "rest_framework.versioning.AcceptHeaderVersioning",
    "DEFAULT_VERSION": "1",
    "ALLOWED_VERSIONS": ["1"],
    "DEFAULT_METADATA_CLASS": "rest_framework.metadata.SimpleMetadata",
    "DEFAULT_SCHEMA_CLASS": "rest_framework.schemas.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "tests.project.settings_hostile.fail",
    "VIEW_NAME_FUNCTION": "tests.project.settings_hostile.fail",
    "UNAUTHENTICATED_USER": "tests.project.settings_hostile.fail",
    "UNAUTHENTICATED_TOKEN": "tests.project.settings_hostile.fail",
    "FORMAT_SUFFIX_KWARG": "tenant",
    "URL_FORMAT_OVERRIDE": "format",
}
