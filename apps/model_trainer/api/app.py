"""The application: its routes, its errors, and what runs beside it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from apps.model_trainer.api import health, runs, schemas
from apps.model_trainer.api.security import LARGEST_BODY, Gate, error_response
from apps.model_trainer.errors import AppError, ErrorCode, as_app_error
from apps.model_trainer.services import Services
from common.errors import ResearchError
from common.utils.logging import get_logger

log = get_logger("service")
_OF_STATUS = {
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    413: ErrorCode.TOO_LARGE,
    415: ErrorCode.UNSUPPORTED_MEDIA_TYPE,
}


def create_app(services: Services) -> FastAPI:
    """Create the application; while it runs, it reconciles."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        thread = threading.Thread(target=services.reconciler.run, name="reconciler", daemon=True)
        thread.start()
        yield
        services.reconciler.stop()
        thread.join(timeout=5)

    app = FastAPI(
        title="Model trainer",
        description="Training, evaluation and generation as a service. See docs/service.md.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        max_body_size=LARGEST_BODY,
    )
    app.state.services = services
    for router in (runs.router, schemas.router, health.router):
        app.include_router(router)
    app.add_exception_handler(ResearchError, _of_library)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(HTTPException, _of_framework)
    app.add_exception_handler(OSError, _of_system)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(Gate, accepts=services.keys.accepts)
    return app


def _request_id(request: Request) -> str:
    return str(getattr(request.state, "request_id", ""))


def _of_library(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ResearchError)
    return error_response(as_app_error(error), _request_id(request))


def _of_validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = f"{where}: {first['msg']}"
    return error_response(AppError(ErrorCode.INVALID_REQUEST, message), _request_id(request))


def _of_framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = _OF_STATUS.get(error.status_code, ErrorCode.INVALID_REQUEST)
    return error_response(AppError(kind, str(error.detail)), _request_id(request))


def _of_system(request: Request, error: Exception) -> JSONResponse:
    """A full disk, most of all: nothing was recorded."""
    import errno

    assert isinstance(error, OSError)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    kind = ErrorCode.STORAGE_FULL if full else ErrorCode.UNAVAILABLE
    log.warning(f"{request.method} {request.url.path}: {error}")
    message = "the disk is full" if full else "a file could not be read or written"
    return error_response(AppError(kind, message), _request_id(request))


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    """Logged with its traceback; the client learns the id to look for."""
    log.error(f"request {_request_id(request)}", exc_info=error)
    return error_response(AppError(ErrorCode.INTERNAL, "an error of ours"), _request_id(request))
