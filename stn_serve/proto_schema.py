"""JSON schemas of protocol messages as `proto_json` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Json = dict[str, Any]
Descriptor = Any
"""protobuf's stubs name two classes for it, and for a field's."""

_INTEGERS: dict[int, Json] = {
    FieldDescriptor.TYPE_INT32: {"type": "integer"},
    FieldDescriptor.TYPE_INT64: {"type": "integer"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "minimum": 0},
    FieldDescriptor.TYPE_UINT64: {"type": "integer", "minimum": 0},
}
_NUMBER: Json = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}


def schemas(*messages: type[Message]) -> Json:
    """The schemas of messages and of all that is in them, by name."""
    found: dict[str, Descriptor] = {}
    for message in messages:
        _collect(message.DESCRIPTOR, found)
    return {name: _object(descriptor) for name, descriptor in sorted(found.items())}


def _collect(descriptor: Descriptor, found: dict[str, Descriptor]) -> None:
    if _name(descriptor) in found:
        return
    if not descriptor.GetOptions().map_entry:
        found[_name(descriptor)] = descriptor
    for nested in _messages_in(descriptor):
        _collect(nested, found)


def _messages_in(descriptor: Descriptor) -> Iterator[Descriptor]:
    return (field.message_type for field in descriptor.fields if field.message_type)


def _name(descriptor: Descriptor) -> str:
    """Without its package: `ModelConfig`, `ModelRepositoryIndex.Entry`."""
    package: str = descriptor.file.package
    return str(descriptor.full_name).removeprefix(f"{package}.")


def _object(descriptor: Descriptor) -> Json:
    return {
        "type": "object",
        "properties": {field.name: _field(field) for field in descriptor.fields},
        "required": [field.name for field in descriptor.fields if not field.has_presence],
    }


def _field(field: Descriptor) -> Json:
    if field.message_type and field.message_type.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _element(field.message_type.fields_by_name["value"])}
    return {"type": "array", "items": _element(field)} if field.is_repeated else _element(field)


def _element(field: Descriptor) -> Json:
    if field.message_type:
        return {"$ref": f"#/components/schemas/{_name(field.message_type)}"}
    if field.enum_type:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    match field.type:
        case FieldDescriptor.TYPE_BOOL:
            return {"type": "boolean"}
        case FieldDescriptor.TYPE_FLOAT | FieldDescriptor.TYPE_DOUBLE:
            return _NUMBER
        case FieldDescriptor.TYPE_BYTES:
            return {"type": "string", "contentEncoding": "base64"}
        case _:
            return _INTEGERS.get(field.type, {"type": "string"})
