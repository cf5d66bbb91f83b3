"""Middleware as people write it: sync only, async only, and of the sort that reads the body first."""

from __future__ import annotations

from typing import Any

from asgiref.sync import iscoroutinefunction
from django.utils.decorators import async_only_middleware, sync_and_async_middleware, sync_only_middleware


@sync_only_middleware
def in_a_thread(get_response: Any) -> Any:
    def middleware(request: Any) -> Any:
        return get_response(request)

    return middleware


@async_only_middleware
def on_the_loop(get_response: Any) -> Any:
    async def middleware(request: Any) -> Any:
        return await get_response(request)

    return middleware


def _before(read: Any) -> Any:
    @sync_and_async_middleware
    def make(get_response: Any) -> Any:
        if iscoroutinefunction(get_response):

            async def amiddleware(request: Any) -> Any:
                read(request)
                return await get_response(request)

            return amiddleware

        def middleware(request: Any) -> Any:
            read(request)
            return get_response(request)

        return middleware

    return make


reads_the_body = _before(lambda request: request.body)
reads_the_form = _before(lambda request: request.POST)


def _fail(request: Any) -> None:
    raise RuntimeError("it saw a request")


fails = _before(_fail)
reads_a_little = _before(lambda request: request.read(1))
