"""Parameters of requests and tensors: what they may say, whichever transport carried them."""

from __future__ import annotations

from collections.abc import Mapping

from stn_serve.errors import InvalidRequest
from stn_serve.scheduling import Urgency
from stn_serve.shared_memory import SharedMemory, Span

Parameters = Mapping[str, object]

EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"
_RESERVED = "triton_"


def urgency(parameters: Parameters) -> Urgency:
    """A request's place in the queue; checks the parameters that have a meaning here.

    Raises:
        InvalidRequest: one has a value of another type, or a name that is reserved.
    """
    for name in parameters:
        if name.startswith(_RESERVED) and name != EMPTY_FINAL_RESPONSE:
            raise InvalidRequest(
                f"parameter keys starting with '{_RESERVED}' are reserved, '{name}' among them. "
                f"Only the following keys starting with '{_RESERVED}' are allowed: {EMPTY_FINAL_RESPONSE}"
            )
    if type(parameters.get(EMPTY_FINAL_RESPONSE, False)) is not bool:
        raise InvalidRequest(f"invalid value type for '{EMPTY_FINAL_RESPONSE}' parameter, expected a boolean")
    priority = _integer(parameters, "priority")
    if priority < 0:
        raise InvalidRequest("invalid value for 'priority' parameter, expected >= 0")
    return Urgency(priority, max(_integer(parameters, "timeout"), 0))


def class_count(parameters: Parameters) -> int:
    """How many classes an output is wanted as; 0 for the tensor itself.

    Raises:
        InvalidRequest: not a number above 0, or together with shared memory.
    """
    if "classification" not in parameters:
        return 0
    if "shared_memory_region" in parameters:
        raise InvalidRequest("output can't set both 'shared_memory_region' and 'classification'")
    count = _integer(parameters, "classification")
    if count <= 0:
        raise InvalidRequest("invalid value for 'classification' parameter, expected > 0")
    return count


def span(tensor: str, parameters: Parameters, shared_memory: SharedMemory) -> Span | None:
    """Where in shared memory a tensor lies; None if it does not.

    Raises:
        NotFound: no such region.
        InvalidRequest: the parameters are incomplete, or reach beyond the region.
        Unsupported: the server does not allow shared memory.
    """
    if "shared_memory_region" not in parameters:
        return None
    region = parameters["shared_memory_region"]
    if not isinstance(region, str):
        raise InvalidRequest(f"invalid value type for 'shared_memory_region' parameter of tensor '{tensor}'")
    if "shared_memory_byte_size" not in parameters:
        raise InvalidRequest(
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter "
            f"for tensor '{tensor}'"
        )
    offset, byte_size = (_integer(parameters, f"shared_memory_{what}") for what in ("offset", "byte_size"))
    return shared_memory.span(region, offset, byte_size)


def _integer(parameters: Parameters, name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int:
        raise InvalidRequest(f"invalid value type for '{name}' parameter, expected an integer")
    return value
