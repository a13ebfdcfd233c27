"""ASGI entry point: pages go through all middleware, scoring requests through the little that a machine needs."""

import os
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.exception import convert_exception_to_response
from django.http import HttpRequest, HttpResponseBase
from django.middleware.common import CommonMiddleware
from django.middleware.security import SecurityMiddleware

from apps.core.stages import header

LEAN_PREFIX = "/api/v1/transactions/"

Respond = Callable[[HttpRequest], Awaitable[HttpResponseBase]]
_caught: Callable[[Respond], Respond] = convert_exception_to_response  # type: ignore[assignment]


class LeanHandler(ASGIHandler):
    """Django's handler with the headers alone: no session, no cookie, no page.

    Django's synchronous middleware would send every request through a dozen threads (docs/adr/0007).
    """

    _view_middleware: list[Any]
    _template_response_middleware: list[Any]
    _exception_middleware: list[Any]
    _get_response_async: Respond

    def load_middleware(self, is_async: bool = False) -> None:
        """Django's own start of a chain, and one link on it."""
        self._view_middleware, self._template_response_middleware, self._exception_middleware = [], [], []
        self._middleware_chain = _caught(_headed(_caught(self._get_response_async)))


def _headed(respond: Respond) -> Respond:
    """Allowed hosts, security headers, the length: the two links look at headers only, and so need no thread."""
    links: tuple[Any, ...] = (SecurityMiddleware(_nothing), CommonMiddleware(_nothing))

    async def headed(request: HttpRequest) -> HttpResponseBase:
        began = perf_counter()
        request.get_host()  # raises for a host that is not ours
        response: HttpResponseBase | None = None
        for link in links:
            response = response or link.process_request(request)
        response = response or await respond(request)
        for link in reversed(links):
            response = link.process_response(request, response)
        took = header({"total": perf_counter() - began})
        response["Server-Timing"] = f"{stages}, {took}" if (stages := response.get("Server-Timing")) else took
        return response

    return headed


def _nothing(request: HttpRequest) -> HttpResponseBase:
    raise AssertionError("only the halves of a link are called, never the link")


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Scoring requests to the lean handler, everything else to Django's usual one."""
    is_lean = scope["type"] == "http" and scope["path"].startswith(LEAN_PREFIX)
    await (_lean if is_lean else _whole)(scope, receive, send)


os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.prod")
_whole = get_asgi_application()
_lean = LeanHandler()
