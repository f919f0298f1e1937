"""What goes wrong between a client and a server, as `stn_serve.errors`."""

from __future__ import annotations

from stn_serve import errors

_SENT_BY_SERVERS = (
    errors.InvalidRequest,
    errors.PayloadTooLarge,
    errors.Unauthenticated,
    errors.PermissionDenied,
    errors.NotFound,
    errors.Unsupported,
    errors.Unavailable,
    errors.DeadlineExceeded,
    errors.Cancelled,
)
_BY_GRPC_CODE = {error.grpc_code.value[0]: error for error in _SENT_BY_SERVERS}
_BY_HTTP_STATUS = {error.http_status: error for error in _SENT_BY_SERVERS}


def error_from_code(code: int, message: str) -> errors.ServingError:
    """The error that a gRPC status code stands for."""
    return _BY_GRPC_CODE.get(code, errors.ServingError)(message)


def error_from_status(status: int, message: str) -> errors.ServingError:
    """The error that an HTTP status stands for."""
    return _BY_HTTP_STATUS.get(status, errors.ServingError)(message)


def unreachable(address: str, protocol: str, reason: str) -> errors.Unavailable:
    """Nobody is there, or hangs up."""
    return errors.Unavailable(
        f"no server answers at {address}: is `stn serve` running, and is this its {protocol} port? ({reason})"
    )


def without_api(address: str) -> errors.Unsupported:
    """Somebody is there, but speaks of something else."""
    return errors.Unsupported(
        f"the server at {address} has no typed image API: ask `stn serve`, or use `infer` and tensors"
    )
