"""From errors to HTTP: problem details (RFC 9457), or the shape that the `anthropic` package reads."""

import logging
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from domain.approvals import Approval
from domain.errors import ApprovalDecided, BadRequest, Invalid, PerdureError, Pointer, SessionBusy
from domain.runs import Run

log = logging.getLogger(__name__)

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
RETRY_AFTER_SECONDS = "2"
PROBLEM_JSON = "application/problem+json"


class Problem(BaseModel):
    """What every error answers."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    retryable: bool
    errors: list[Pointer] | None = None
    approval: Approval | None = None
    """With `approval_decided`: the approval as it was decided."""
    run: Run | None = None
    """With `session_busy`: the run that is at work."""


class AnthropicFault(BaseModel):
    type: str
    message: str


class AnthropicError(BaseModel):
    """What errors answer to callers that send `anthropic-version`."""

    type: Literal["error"] = "error"
    error: AnthropicFault
    request_id: str


_STATUSES = {
    400: "A cursor, header or JSON that cannot be read",
    401: "No key, or a wrong one",
    403: "The key lacks a scope",
    404: "No such thing in this workspace",
    409: "Not in this state",
    413: "Over the limit: a body of 10 MB, or that of files, of documents, or of logs that are copied",
    422: "The request cannot be used; `errors` says where",
    429: "As many messages wait in the session as may: `queue_depth`",
    503: "A part that the answer needs is not reachable",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in _STATUSES.items()
    if status != HTTPStatus.TOO_MANY_REQUESTS
}
QUEUE_FULL: dict[int | str, dict[str, Any]] = {429: {"model": Problem, "description": _STATUSES[429]}}
"""Of operations that send a message."""


def install(app: FastAPI) -> None:
    app.add_exception_handler(PerdureError, _perdure)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)
    plain = app.openapi
    app.openapi = lambda: _described(app, plain)  # type: ignore[method-assign]  # as FastAPI documents it


def _described(app: FastAPI, plain: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The OpenAPI document, with the media types of errors: the framework declares all models as `application/json`."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    document = plain()
    schemas = document["components"]["schemas"]
    error = AnthropicError.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update({**error.pop("$defs"), "AnthropicError": error})
    for operations in document["paths"].values():
        for operation in operations.values():
            for status in operation["responses"].keys() & {str(status) for status in _STATUSES}:
                content = operation["responses"][status]["content"]
                shown = next(iter(content.values()))
                if shown == {"schema": {"$ref": "#/components/schemas/Problem"}}:
                    other = {"schema": {"$ref": "#/components/schemas/AnthropicError"}}
                    operation["responses"][status]["content"] = {PROBLEM_JSON: shown, "application/json": other}
    return document


def answer(request: Request, error: PerdureError) -> JSONResponse:
    """The response for an error of ours."""
    faults = list(error.faults) if isinstance(error, Invalid) else []
    request_id = getattr(request.state, "request_id", "")
    headers = {"Request-Id": request_id}  # also where the answer is made outside of the middleware that sets it
    if error.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers["Retry-After"] = RETRY_AFTER_SECONDS
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if "anthropic-version" in request.headers:
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
        fault = AnthropicError(error=AnthropicFault(type=kind, message=error.message), request_id=request_id)
        return JSONResponse(fault.model_dump(), error.status, headers)
    problem = Problem(
        type=f"urn:perdure:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.message,
        instance=request.scope["path"],  # not request.url, which raises for some Host headers
        code=error.code,
        request_id=request_id,
        retryable=error.retryable,
        errors=faults or None,
        approval=Approval.model_validate(error.winner.model_dump()) if isinstance(error, ApprovalDecided) else None,
        run=Run.model_validate(error.run.model_dump()) if isinstance(error, SessionBusy) else None,
    )
    content = {name: value for name, value in problem.model_dump(mode="json").items() if value is not None}
    return JSONResponse(content, error.status, headers, media_type=PROBLEM_JSON)


async def _perdure(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, PerdureError)
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("%s: %s", error.code, error.message)
    return answer(request, error)


async def _validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    if any(fault["type"] == "json_invalid" for fault in error.errors()):
        return answer(request, BadRequest("The body is not JSON."))
    if isinstance(error.body, bytes) and error.body:
        return answer(request, Invalid("Send the body as JSON, with `Content-Type: application/json`."))
    faults = [_fault(fault, error.body) for fault in error.errors()]
    first = f"{faults[0].pointer}: {faults[0].detail}" if faults else "The request cannot be used."
    return answer(request, Invalid(first, *faults))


def _fault(fault: Any, body: object) -> Pointer:
    place, *rest = fault["loc"] or ("",)
    if place != "body":
        return Pointer(pointer="/".join(str(part) for part in (place, *rest)), detail=str(fault["msg"]))
    if fault["type"] not in ("missing", "extra_forbidden"):
        return Pointer(pointer=_pointer(_real(rest, body)), detail=str(fault["msg"]))
    return Pointer(pointer=_pointer([*_real(rest[:-1], body), *rest[-1:]]), detail=str(fault["msg"]))


def _real(parts: Sequence[str | int], body: object) -> list[str | int]:
    """Those parts that are members of the body: the validator also names the branches of unions that it tried."""
    found: list[str | int] = []
    here: object = body
    for part in parts:
        members: Mapping[str | int, object] = {}
        if isinstance(here, dict):
            members = cast("dict[str | int, object]", here)
        elif isinstance(here, list | tuple):
            members = dict(enumerate(cast("Sequence[object]", here)))
        if part in members:
            here = members[part]
            found.append(part)
    return found


def _pointer(parts: Sequence[str | int]) -> str:
    return "/" + "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in parts)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)

    class Other(PerdureError):
        code = status.phrase.lower().replace(" ", "_")
        title = status.phrase

    Other.status = error.status_code
    response = answer(request, Other(str(error.detail)))
    response.headers.update(error.headers or {})
    return response


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected error on %s", request.url.path, exc_info=error)
    return answer(request, PerdureError("An unexpected error; the log has it under this request id."))
