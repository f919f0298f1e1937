"""Tokens on gRPC: every method of every service belongs to a group, and is refused before its message is read."""

from __future__ import annotations

from stn_serve.access import OPEN, Access
from stn_serve.grpc_head import Head

METHOD_GROUPS = {
    "ServerLive": "health",
    "ServerReady": "health",
    "ModelReady": "health",
    "Check": "health",
    "Watch": "health",
    "ServerMetadata": "metadata",
    "ModelMetadata": "metadata",
    "ServerReflectionInfo": "metadata",
    "ModelConfig": "model-config",
    "ModelStatistics": "statistics",
    "ModelInfer": "inference",
    "ModelStreamInfer": "inference",
    "Predict": "inference",
    "PredictStream": "inference",
    "RepositoryIndex": "model-repository",
    "RepositoryModelLoad": "model-repository",
    "RepositoryModelUnload": "model-repository",
    "SystemSharedMemoryStatus": "shared-memory",
    "SystemSharedMemoryRegister": "shared-memory",
    "SystemSharedMemoryUnregister": "shared-memory",
    "CudaSharedMemoryStatus": "shared-memory",
    "CudaSharedMemoryRegister": "shared-memory",
    "CudaSharedMemoryUnregister": "shared-memory",
    "TraceSetting": "trace",
    "LogSettings": "logging",
}
"""By the method's name, which no two services share."""


def check_access(access: Access, head: Head) -> None:
    """Let a call pass.

    Raises:
        Unauthenticated: see `Access.check`.
        PermissionDenied: see `Access.check`.
    """
    if access is OPEN:
        return
    # Methods that do not exist are unknown to those only who may ask.
    group = METHOD_GROUPS.get(head.method.rpartition("/")[2], "inference")
    access.check(group, str(dict(head.invocation_metadata).get("authorization", "")))
