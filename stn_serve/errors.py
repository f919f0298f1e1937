"""The family of errors, each with its HTTP status, gRPC code and Triton's reason of failure.

ServingError                500  INTERNAL            OTHER
├── InvalidRequest          400  INVALID_ARGUMENT    OTHER     the request is wrong: sending it again will not help
│   ├── PayloadTooLarge     413  RESOURCE_EXHAUSTED  OTHER     it is larger than the server accepts
│   ├── RequestTimeout      408  DEADLINE_EXCEEDED   OTHER     it did not arrive in time
│   └── AlreadyExists       400  ALREADY_EXISTS      OTHER     its name is taken
├── Unauthenticated         401  UNAUTHENTICATED     OTHER     the caller has not shown who it is
├── PermissionDenied        403  PERMISSION_DENIED   OTHER     it has, and may not do this
├── NotFound                404  NOT_FOUND           OTHER     no such model, version or path
├── MethodNotAllowed        405  UNIMPLEMENTED       OTHER     the path exists, with another HTTP method
├── Unsupported             501  UNIMPLEMENTED       OTHER     a part of the protocol that this server does not have
├── Unavailable             503  UNAVAILABLE         REJECTED  queue full, expired in the queue, or stopping: try later
├── DeadlineExceeded        504  DEADLINE_EXCEEDED   CANCELED  the caller's time is up
├── Cancelled               499  CANCELLED           CANCELED  the caller has gone away
├── ModelFailure            500  INTERNAL            BACKEND   the model raised while it computed
└── ConfigurationError      500  INTERNAL            OTHER     settings, a repository or a model that cannot be used
"""

from __future__ import annotations

from typing import ClassVar, Literal

import grpc

FailureReason = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]


class ServingError(Exception):
    """Root of the family; `str(error)` is the message for the caller."""

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    failure_reason: ClassVar[FailureReason] = "OTHER"


class InvalidRequest(ServingError):
    """The request contradicts itself, the protocol or the model's signature, or holds an image that cannot be read."""

    http_status = 400
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT


class PayloadTooLarge(InvalidRequest):
    """A body, message or image is larger than the server accepts."""

    http_status = 413
    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class RequestTimeout(InvalidRequest):
    """The rest of a request did not arrive in time."""

    http_status = 408
    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED


class AlreadyExists(InvalidRequest):
    """The name is taken."""

    grpc_code = grpc.StatusCode.ALREADY_EXISTS


class Unauthenticated(ServingError):
    """The caller's token is missing or wrong."""

    http_status = 401
    grpc_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ServingError):
    """The caller's token is known, but not for this call."""

    http_status = 403
    grpc_code = grpc.StatusCode.PERMISSION_DENIED


class NotFound(ServingError):
    """No model, version or path of this name."""

    http_status = 404
    grpc_code = grpc.StatusCode.NOT_FOUND


class MethodNotAllowed(ServingError):
    """The path exists, but not with this HTTP method."""

    http_status = 405
    grpc_code = grpc.StatusCode.UNIMPLEMENTED

    def __init__(self, *allowed: str) -> None:
        super().__init__("Method Not Allowed")
        self.allowed = allowed
        """The methods it exists with."""


class Unsupported(ServingError):
    """A part of the protocol that this server does not have."""

    http_status = 501
    grpc_code = grpc.StatusCode.UNIMPLEMENTED


class Unavailable(ServingError):
    """Refused for now: the queue is full, the request waited too long, or the server is stopping."""

    http_status = 503
    grpc_code = grpc.StatusCode.UNAVAILABLE
    failure_reason = "REJECTED"
    retry_after_s = 0.0
    """How long a server has asked its client to wait."""


class DeadlineExceeded(ServingError):
    """The caller's time is up."""

    http_status = 504
    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED
    failure_reason = "CANCELED"


class Cancelled(ServingError):
    """The caller has gone away."""

    http_status = 499
    grpc_code = grpc.StatusCode.CANCELLED
    failure_reason = "CANCELED"


class ModelFailure(ServingError):
    """The model raised while it computed a valid request."""

    failure_reason = "BACKEND"


class ConfigurationError(ServingError):
    """Settings, a model repository or a model that cannot be used; ends a start with exit code 2."""
