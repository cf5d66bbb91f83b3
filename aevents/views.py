"""The way in through Django: `EventViewSet` on adrf, one POST for each event, or for a batch of them.

Every policy of Django REST framework is pinned on the class, so that the project's own
`REST_FRAMEWORK` (authentication, permissions, throttles, renderers) changes nothing here.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import IO, Any

import orjson
from adrf.requests import AsyncRequest
from adrf.viewsets import ViewSet
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.http.request import RawPostDataException
from rest_framework.exceptions import ParseError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.settings import DEFAULTS, IMPORT_STRINGS, APISettings

from aevents import batch, wire
from aevents.event import Message
from aevents.receiver import DRAINED_BYTES, receive, refusal_of_length
from aevents.settings import conf

_DRAIN_STEP_BYTES = 64 * 1024
_META = {name: "HTTP_" + name.upper().replace("-", "_") for name in wire.HEADERS}
_META["content-type"] = "CONTENT_TYPE"


class EventParser(BaseParser):
    """Reads the body's bytes, one byte past the limit at the most; `aevents.wire` makes sense of them."""

    media_type = "*/*"

    def parse(
        self,
        stream: IO[bytes],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        return stream.read(int(conf().LIMITS.BODY_BYTES) + 1)


class EventRenderer(BaseRenderer):
    """Renders every answer as JSON, with orjson."""

    media_type = wire.JSON
    format = "json"
    charset = None

    def render(
        self,
        data: Any,
        accepted_media_type: str | None = None,
        renderer_context: Mapping[str, Any] | None = None,
    ) -> bytes:
        return orjson.dumps(data, default=str)


class _OnlyJson(BaseContentNegotiation):
    """JSON for everybody, whatever they say they accept: no answer is lost to a 406."""

    def select_parser(self, request: Any, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Any, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


class _Request(AsyncRequest):
    """A request without a user (DRF's anonymous one needs `django.contrib.auth`) but with every body."""

    def _load_stream(self) -> None:
        # A chunked body has no Content-Length: DRF takes it for none, under WSGI Django does too.
        http: Any = self._request
        if http.META.get("wsgi.input_terminated") and not http.META.get("CONTENT_LENGTH"):
            self._stream = http.META["wsgi.input"]
        else:
            self._stream = io.BytesIO(http.body) if http._read_started else http

    def _not_authenticated(self) -> None:
        self._authenticator = None
        self.user = None
        self.auth = None


class EventViewSet(ViewSet):
    """Takes an event or a batch by POST: `path("events/", include("aevents.urls"))`, or any router.

    Answers 200 when every handler has succeeded (or there is none), 400, 401, 413 or 415 for what is
    no event, 503 where a handler failed; always JSON, with `detail` where it is an error.
    """

    authentication_classes = ()
    permission_classes = ()
    throttle_classes = ()
    parser_classes = (EventParser,)
    renderer_classes = (EventRenderer,)
    content_negotiation_class = _OnlyJson
    metadata_class = None
    versioning_class = None
    schema = None
    # DRF's defaults, the exception handler too. Given no setting it reads the project's: so one is given.
    settings = APISettings({"FORMAT_SUFFIX_KWARG": "format"}, DEFAULTS, IMPORT_STRINGS)
    http_method_names = ("post",)

    @classmethod
    def as_view(cls, actions: Any = None, **initkwargs: Any) -> Any:
        view: Any = super().as_view(actions, **initkwargs)  # type: ignore[no-untyped-call]  # adrf's
        view.login_required = False  # LoginRequiredMiddleware would send services to a login page
        for alias in connections:  # with ATOMIC_REQUESTS Django answers 500 to async views, unless:
            view = transaction.non_atomic_requests(using=alias)(view)
        return view

    async def create(self, request: Any, *_: Any, **__: Any) -> HttpResponse:
        """Take the event in the request's body, whatever the URL around it says."""
        http: HttpRequest = request._request
        peer = str(http.META.get("REMOTE_ADDR", ""))
        answer = refusal_of_length(str(http.META.get("CONTENT_LENGTH") or ""))
        if answer is None:
            message = Message(_headers(http.META), _body(request))
            answer = await receive(message, peer=peer, at_home=isinstance(http, ASGIRequest))
        if answer.status == 413:
            _drain(request)
        return HttpResponse(
            answer.body, status=answer.status, content_type=wire.JSON, headers=dict(answer.headers)
        )

    acreate = create  # the name that adrf's own routers look for; DRF's look for `create`

    async def async_dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """As adrf's, but without a thread for policies where there are none, nor one for rendering."""
        self.args, self.kwargs = args, kwargs
        self.request = drf = self.initialize_request(request, *args, **kwargs)
        self.headers = self.default_response_headers
        try:
            if any((self.authentication_classes, self.permission_classes, self.throttle_classes)):
                await sync_to_async(self.initial)(drf, *args, **kwargs)
            else:
                self.initial(drf, *args, **kwargs)
            handler = self.http_method_not_allowed
            if request.method and request.method.lower() in self.http_method_names:
                handler = getattr(self, request.method.lower(), handler)
            response = handler(drf, *args, **kwargs)
            if hasattr(response, "__await__"):
                response = await response
        except Exception as error:
            response = self.handle_exception(error)
        self.response = self.finalize_response(drf, response, *args, **kwargs)
        return self.response

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> _Request:
        return _Request(
            request,
            parsers=self.get_parsers(),
            authenticators=self.get_authenticators(),
            negotiator=self.get_content_negotiator(),
            parser_context=self.get_parser_context(request),
        )

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        response.headers.setdefault("Accept-Post", batch.OFFER)
        if not hasattr(response, "render"):
            return response
        # Django renders a response that can be rendered in a thread of its own, so it gets a plain one.
        response.render()
        plain = HttpResponse(response.content, status=response.status_code, content_type=wire.JSON)
        for name, value in response.items():
            plain.headers.setdefault(name, value)
        return plain


def _headers(meta: Mapping[str, Any]) -> dict[str, str]:
    return {name: meta[key] for name, key in _META.items() if meta.get(key)}


def _drain(request: Any) -> None:
    """Read on and forget, within a bound: a server that closes on unread bytes resets the connection,
    and the client loses the answer that tells it why."""
    with contextlib.suppress(OSError, RawPostDataException):
        for _ in range(DRAINED_BYTES // _DRAIN_STEP_BYTES):
            if not request.stream or not request.stream.read(_DRAIN_STEP_BYTES):
                return


def _body(request: Any) -> bytes:
    try:
        data = request.data
    except (OSError, RawPostDataException) as error:  # the client left, or a middleware was greedy
        raise ParseError("The body could not be read.") from error
    return data if isinstance(data, bytes) else b""
