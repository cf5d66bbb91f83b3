"""Asks the project of DJANGO_SETTINGS_MODULE at every mount in both ways, and prints what it said.

A process of its own: REST framework reads its settings when it is imported.
"""

from __future__ import annotations

import asyncio
import json
import sys

import django

from tests.project.clients import JSON, Reply, ask_asgi, ask_wsgi

_REQUESTS = {
    "event": ("POST", b'{"event_type":"noted","payload":{"n":1}}', JSON),
    "event from a browser": (
        "POST",
        b'{"event_type":"noted","payload":{"n":2}}',
        {**JSON, "accept": "text/html,application/xhtml+xml;q=0.9", "accept-language": "de"},
    ),
    "no json": ("POST", b"{", JSON),
    "form": ("POST", b"event_type=a", {"content-type": "application/x-www-form-urlencoded"}),
    "get": ("GET", b"", {"accept": "text/html"}),
    "options": ("OPTIONS", b"", {}),
}
# What befalls views that are not ours: each path with the request that shows it.
_OTHERS = {"/plain/": "event", "/plain/drf/": "event"}

Asked = dict[tuple[str, str], Reply]


def _questions(mounts: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(mount, name) for mount in mounts for name in _REQUESTS] + list(_OTHERS.items())


async def _ask_all_asgi(mounts: tuple[str, ...]) -> Asked:
    asked: Asked = {}
    for mount, name in _questions(mounts):
        method, body, headers = _REQUESTS[name]
        sent = {**headers, "content-length": str(len(body))}
        asked[mount, name] = await ask_asgi(body, sent, method=method, path=mount)
    return asked


def _ask_all_wsgi(mounts: tuple[str, ...]) -> Asked:
    asked: Asked = {}
    for mount, name in _questions(mounts):
        method, body, headers = _REQUESTS[name]
        sent = {**headers, "content-length": str(len(body))}
        asked[mount, name] = ask_wsgi(body, sent, method=method, path=mount)
    return asked


def main() -> None:
    django.setup()
    from tests.project.urls_mounts import MOUNTS  # it needs the settings

    replies = {"asgi": asyncio.run(_ask_all_asgi(MOUNTS)), "wsgi": _ask_all_wsgi(MOUNTS)}
    json.dump(
        [
            {
                "way": way,
                "mount": mount,
                "request": name,
                "status": reply.status,
                "type": reply.headers.get("content-type", ""),
                "allow": reply.headers.get("allow", ""),
                "body": reply.body.decode(errors="replace"),
            }
            for way, asked in replies.items()
            for (mount, name), reply in asked.items()
        ],
        sys.stdout,
    )


if __name__ == "__main__":
    main()
