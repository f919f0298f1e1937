"""Changes to a `config.pbtxt` that leave the rest of the file as its owner wrote it: order, layout and comments."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from tritonclient.grpc.model_config_pb2 import ModelConfig

_TOKEN = re.compile(
    r"""(?P<skipped>\s+|\#[^\n]*) | "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | [][{}<>:;,] | [^][{}<>:;,\s#"']+""",
    re.VERBOSE,
)
_CLOSING = {"{": "}", "<": ">"}


class Token(NamedTuple):
    """A word of the text format."""

    text: str
    start: int
    end: int


@dataclass
class Place:
    """Where a field stands in a text; `blocks` are its messages, those of a list in brackets several."""

    name: str
    start: int
    end: int
    blocks: list[Block]


@dataclass
class Block:
    """The fields of a message; `start` and `end` are those of what is between its braces."""

    start: int
    end: int
    places: list[Place]


class Edit(NamedTuple):
    """Text to put in the place of another."""

    start: int
    end: int
    text: str


def rewrite(text: str, wanted: ModelConfig) -> str:
    """The text with just as much changed as makes it say `wanted`; a comment inside what is replaced goes with it."""
    present = text_format.Parse(text, ModelConfig())
    for edit in sorted(_edits(text, _parse(text), present, wanted), reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    assert text_format.Parse(text, ModelConfig()) == wanted, text  # noqa: S101 - before anything is written
    return text


def replace_file(path: Path, text: str) -> None:
    """Write a file in one step, with its permissions: who reads it sees all of the old text or all of the new."""
    descriptor, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, path.stat().st_mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def _edits(text: str, block: Block, present: Message, wanted: Message) -> Iterator[Edit]:
    fields: Sequence[Any] = wanted.DESCRIPTOR.fields  # protobuf's types know two kinds of them
    for field in fields:
        before, after = _values(present, field), _values(wanted, field)
        if before == after:
            continue
        places = [place for place in block.places if place.name == field.name]
        blocks = [inner for place in places for inner in place.blocks]
        if _is_map(field):
            yield from _map_edits(text, block, blocks, field, wanted)
        elif blocks and len(blocks) == len(before) == len(after):
            for inner, old, new in zip(blocks, before, after, strict=True):
                yield from _edits(text, inner, old, new)
        elif not places:
            yield _insertion(text, block, _printed(wanted, field))
        else:
            printed = _printed(wanted, field).replace("\n", "\n" + _indentation(text, places[0].start))
            yield Edit(places[0].start, places[0].end, printed)
            yield from (_removal(text, place) for place in places[1:])


def _map_edits(text: str, block: Block, blocks: list[Block], field: FieldDescriptor, wanted: Message) -> Iterator[Edit]:
    """Entries that have changed or are new; none is ever taken away."""
    found = {}
    for inner in blocks:
        entry = f"{field.name} {{ {text[inner.start : inner.end]}\n}}"
        [key] = getattr(text_format.Parse(entry, type(wanted)()), field.name)
        found[key] = inner, entry
    for key, value in getattr(wanted, field.name).items():
        single = type(wanted)()
        getattr(single, field.name)[key].CopyFrom(value)
        if key not in found:
            yield _insertion(text, block, _printed(single, field))
        elif text_format.Parse(found[key][1], type(wanted)()) != single:
            inner, _ = found[key]
            yield Edit(inner.start, inner.end, _printed(single, field, as_one_line=True).split("{", 1)[1][:-1])


def _values(message: Message, field: FieldDescriptor) -> list[Any]:
    """As a list, empty where the field is absent."""
    if field.is_repeated:
        value = getattr(message, field.name)
        return sorted((key, value[key].SerializeToString()) for key in value) if _is_map(field) else list(value)
    value = getattr(message, field.name)
    present = message.HasField(field.name) if field.has_presence else value != field.default_value
    return [value] if present else []


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _printed(message: Message, field: FieldDescriptor, as_one_line: bool = False) -> str:
    """A field as text, with its name; nothing if it is absent."""
    single = type(message)()
    single.CopyFrom(message)
    for other, _ in message.ListFields():
        if other.name != field.name:
            single.ClearField(other.name)
    return text_format.MessageToString(single, as_one_line=as_one_line).strip()


def _insertion(text: str, block: Block, printed: str) -> Edit:
    """At the end of a message: a line of its own, unless the message is written in one line."""
    if block.end == len(text):
        return Edit(block.end, block.end, ("" if text.endswith("\n") or not text else "\n") + printed + "\n")
    if "\n" not in text[block.start : block.end]:
        space = "" if text[: block.end].endswith(" ") else " "
        return Edit(block.end, block.end, f"{space}{' '.join(printed.split())} ")
    at = text.rfind("\n", 0, block.end) + 1
    if text[at : block.end].strip():
        at = block.end
    inner = _indentation(text, block.end) + "  "
    return Edit(at, at, inner + printed.replace("\n", "\n" + inner) + "\n")


def _removal(text: str, place: Place) -> Edit:
    """With its line, if it stands there alone."""
    start, end = text.rfind("\n", 0, place.start) + 1, text.find("\n", place.end) + 1
    if end and not text[start : place.start].strip() and not text[place.end : end].strip():
        return Edit(start, end, "")
    return Edit(place.start, place.end, "")


def _indentation(text: str, position: int) -> str:
    """The white space that the line of a position begins with."""
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return line[: len(line) - len(line.lstrip())]


def _parse(text: str) -> Block:
    matches = (match for match in _TOKEN.finditer(text) if not match["skipped"])
    tokens = [Token(match[0], *match.span()) for match in matches]
    return Block(0, len(text), _Parser(tokens).places(""))


class _Parser:
    """Of a text that is known to be sound: it has been parsed into a message before."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = iter([*tokens, Token("", 0, 0)])
        self._next = next(self._tokens)
        self._end = 0

    def places(self, closing: str) -> list[Place]:
        """The fields before a closing brace, or of the whole text."""
        found = []
        while self._next.text != closing:
            name = self._take()
            if self._next.text == ":":
                self._take()
            found.append(Place(name.text, name.start, name.end, self._value()))
            found[-1].end = self._end
            if self._next.text in (",", ";"):
                self._take()
                found[-1].end = self._end
        return found

    def _take(self) -> Token:
        token, self._next = self._next, next(self._tokens)
        self._end = token.end
        return token

    def _value(self) -> list[Block]:
        opening = self._take()
        if opening.text in _CLOSING:
            return [self._block(opening)]
        if opening.text == "[":
            return self._list()
        while opening.text[0] in "\"'" and self._next.text[:1] in ('"', "'"):  # strings in a row are one
            self._take()
        return []

    def _list(self) -> list[Block]:
        blocks = []
        while (token := self._take()).text != "]":
            if token.text in _CLOSING:
                blocks.append(self._block(token))
        return blocks

    def _block(self, opening: Token) -> Block:
        places = self.places(_CLOSING[opening.text])
        return Block(opening.end, self._take().start, places)
