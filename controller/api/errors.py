"""Errors of the API as problem details (RFC 9457), and the limit on request bodies."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller import telemetry
from controller.errors import BadInput, CanaryctlError, Unreachable, problem_document
from controller.quantities import whole

MAX_BODY_BYTES = 1 << 20


def add_error_handling(app: FastAPI) -> None:
    """Answer every error with one problem document, and limit the size of request bodies."""

    @app.exception_handler(CanaryctlError)
    async def on_canaryctl_error(_: Request, exc: CanaryctlError) -> Response:
        answer = _problem(exc.status, exc.problem, exc.details, exc.exit_code)
        if isinstance(exc, Unreachable) and exc.retry_after_s is not None:
            answer.headers["retry-after"] = str(exc.retry_after_s)
        return answer

    @app.exception_handler(HTTPException)
    async def on_http_error(_: Request, exc: HTTPException) -> Response:
        return _problem(exc.status_code, "http", (str(exc.detail),), 2)

    @app.exception_handler(RequestValidationError)
    async def on_invalid_request(_: Request, exc: RequestValidationError) -> Response:
        lines = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}; correct it" for error in exc.errors()]
        return _problem(422, BadInput.problem, lines, BadInput.exit_code)

    @app.exception_handler(Exception)
    async def on_internal_error(request: Request, exc: Exception) -> Response:
        telemetry.error("request failed", exc, path=request.url.path)
        return _problem(500, "internal", ("canaryctl failed; the controller's log says why",), 1)

    app.add_middleware(BodyLimit)


def _problem(status: int, kind: str, lines: Sequence[str], exit_code: int) -> JSONResponse:
    document = problem_document(kind, status=status, lines=lines, exit_code=exit_code)
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(document, status, headers, media_type="application/problem+json")


class BodyLimit:
    """ASGI middleware that refuses a request body of more than `MAX_BODY_BYTES`.

    A declared length is checked before the body is read; a chunked body is counted as it arrives.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if not 0 <= (-1 if (size := whole(length)) is None else size) <= MAX_BODY_BYTES:
            refused = _problem(413, "http", (_too_long(length),), BadInput.exit_code)
            await refused(scope, receive, send)
            return
        received_bytes = 0

        async def counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > MAX_BODY_BYTES:
                # Raised where the body is read, inside the application, whose handlers answer it.
                raise HTTPException(413, _too_long(f"{received_bytes} or more"))
            return message

        await self._app(scope, counted, send)


def _too_long(length: str) -> str:
    return f"body of {length} bytes exceeds {MAX_BODY_BYTES}; split the request"
