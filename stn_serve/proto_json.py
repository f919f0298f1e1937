"""Protocol messages as Triton writes them in JSON.

The proto's field names, enums by name, 64-bit integers as numbers, fields that hold their default included. What JSON
lacks of numbers is written as protobuf's own JSON does: "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

from base64 import b64encode
from math import isfinite, isnan
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Field = Any
"""A `FieldDescriptor`: protobuf's stubs name two classes for it."""


def to_json(message: Message) -> dict[str, Any]:
    """What orjson serialises, with OPT_SERIALIZE_NUMPY; messages and oneofs that are not set are left out."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields if _is_written(message, field)}


def _is_written(message: Message, field: Field) -> bool:
    return not field.has_presence or message.HasField(field.name)


def _field(message: Message, field: Field) -> Any:  # noqa: ANN401 - any JSON value
    value = getattr(message, field.name)
    if field.message_type and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        return {str(key): _element(entry, value[key]) for key in value}
    return [_element(field, element) for element in value] if field.is_repeated else _element(field, value)


def _element(field: Field, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    match field.type:
        case FieldDescriptor.TYPE_MESSAGE:
            return to_json(value)
        case FieldDescriptor.TYPE_ENUM:
            return field.enum_type.values_by_number[value].name
        case FieldDescriptor.TYPE_FLOAT:
            return np.float32(value) if isfinite(value) else _name(value)  # float32, so that 0.1 is written as 0.1
        case FieldDescriptor.TYPE_BYTES:
            return b64encode(value).decode()
        case _:
            return value


def _name(number: float) -> str:
    return "NaN" if isnan(number) else "Infinity" if number > 0 else "-Infinity"
