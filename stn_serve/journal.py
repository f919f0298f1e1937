"""The changes that clients have made, so that a worker that starts later can follow them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stn_serve.channel import Json

Change = tuple[str, Sequence[Json]]
"""An operation of `Control.perform` and its arguments."""

SUBJECTS = {"load": "model", "unload": "model", "register": "region", "unregister": "region", "log": "log"}
"""What an operation changes; the last change of a model or a region is all that counts."""


class Journal:
    """Changes in their order, without those that later ones have made good."""

    def __init__(self) -> None:
        self._changes: dict[tuple[str, Json], Change] = {}

    def note(self, operation: str, arguments: Sequence[Json]) -> None:
        """Add one that has been made."""
        subject = SUBJECTS[operation]
        if subject == "log":
            _, (known,) = self._changes.get(("log", ""), ("log", ({},)))
            self._changes["log", ""] = (operation, ({**known, **arguments[0]},))
            return
        name = arguments[0]
        forgotten = [key for key in self._changes if key == (subject, name) or (operation, name) == ("unregister", "")]
        for key in forgotten:
            if key[0] == subject:
                del self._changes[key]
        if operation != "unregister":  # a new worker has no regions
            self._changes[subject, name] = (operation, arguments)

    def __iter__(self) -> Iterator[Change]:
        return iter(list(self._changes.values()))
