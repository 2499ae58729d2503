"""Errors of the API: `{code, message, hint, request_id}` with an HTTP status."""

from __future__ import annotations

from enum import StrEnum

from common.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ExperimentError,
    ModelError,
    ResearchError,
    UsageError,
)


class ErrorCode(StrEnum):
    """The `code` of an error response."""

    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    INVALID_REQUEST = "invalid_request"
    INVALID_CONFIG = "invalid_config"
    DATA_NOT_FOUND = "data_not_found"
    UNAVAILABLE = "unavailable"
    STORAGE_FULL = "storage_full"
    INTERNAL = "internal"


STATUS: dict[ErrorCode, int] = {
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.CONFLICT: 409,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: 415,
    ErrorCode.INVALID_REQUEST: 422,
    ErrorCode.INVALID_CONFIG: 422,
    ErrorCode.DATA_NOT_FOUND: 422,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.STORAGE_FULL: 507,
    ErrorCode.INTERNAL: 500,
}


class AppError(ResearchError):
    """An error with a code of the API."""

    code = "service"

    def __init__(self, kind: ErrorCode, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.kind = kind


_KINDS: tuple[tuple[type[ResearchError], ErrorCode], ...] = (
    (DataError, ErrorCode.DATA_NOT_FOUND),
    (ConfigError, ErrorCode.INVALID_CONFIG),
    (ModelError, ErrorCode.INVALID_CONFIG),
    (ExperimentError, ErrorCode.CONFLICT),
    (CheckpointError, ErrorCode.CONFLICT),
    (UsageError, ErrorCode.INVALID_REQUEST),
)


def as_app_error(error: ResearchError) -> AppError:
    """The error of the API for one of the library."""
    if isinstance(error, AppError):
        return error
    kinds = (kind for types, kind in _KINDS if isinstance(error, types))
    return AppError(next(kinds, ErrorCode.INVALID_REQUEST), error.message, error.hint)
