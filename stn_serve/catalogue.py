"""What callers may ask: versions of models by name and number, wherever they are computed."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from stn_serve.errors import InvalidRequest, NotFound
from stn_serve.exposition import Family
from stn_serve.loading import IndexEntry
from stn_serve.served_model import ServedModel


class Catalogue(ABC):
    """The lookups; its kinds know where models come from. Used on one event loop."""

    def __init__(self) -> None:
        self._served: dict[str, dict[int, ServedModel]] = {}
        """By name and version; no version of a model that has none to offer."""
        self.changed = asyncio.Event()
        """Set, and replaced by a new one, when models come or go."""

    @property
    @abstractmethod
    def index(self) -> list[IndexEntry]:
        """Every version of every model, served or not; of a model that was never loaded just the name."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether any model can answer, unless none was to be loaded."""

    @abstractmethod
    def knows(self, name: str) -> bool:
        """Whether there is such a model, ready or not."""

    @abstractmethod
    async def look(self) -> None:
        """Bring the index up to date."""

    @abstractmethod
    async def load_model(self, name: str) -> None:
        """Load a model as its repository has it now, for a client.

        Raises:
            Unsupported: clients may not do so.
            NotFound: the repository has no such model.
            InvalidRequest: a version of it cannot be served; what was served still is.
        """

    @abstractmethod
    async def unload_model(self, name: str) -> None:
        """Serve a model no more, for a client.

        Raises:
            Unsupported: clients may not do so.
            NotFound: there is no such model.
        """

    async def finish(self, grace_s: float) -> None:
        """Refuse what comes and wait, at most for `grace_s`, until all that came before is answered."""
        leaving = []
        for served in self:
            served.users.refuse()
            leaving.append(asyncio.ensure_future(served.users.leave()))
        if leaving:
            await asyncio.wait(leaving, timeout=grace_s)

    @property
    def computing(self) -> bool:
        """Whether a batch runs in this process, even if nobody waits for it any more."""
        return False

    @abstractmethod
    async def close(self, grace_s: float | None = None) -> None:
        """Finish what is queued, at most for `grace_s`."""

    def families(self) -> Sequence[Family]:
        """Metrics of where the models come from; none of a repository."""
        return ()

    def __iter__(self) -> Iterator[ServedModel]:
        return (served for versions in self._served.values() for served in versions.values())

    def find(self, name: str, version: str = "") -> ServedModel:
        """A version that is ready; of none in particular, the newest.

        It may be gone after the next `await`: whoever works with it for longer does so `with` its `users`.

        Raises:
            NotFound: no such model or version, or it is not ready.
            InvalidRequest: the version is not a number.
        """
        unknown = f"Request for unknown model: '{name}'"
        versions = self._served.get(name)
        if versions is None:
            raise NotFound(f"{unknown} is not found")
        if not version:
            if not versions:
                raise NotFound(f"{unknown} has no available versions; the repository index says why")
            return versions[max(versions)]
        served = versions.get(parse_version(version))
        if served is None:
            raise NotFound(f"{unknown} version {version} is not found")
        return served

    def find_all(self, name: str) -> list[ServedModel]:
        """Every version of a model that is ready, oldest first.

        Raises:
            NotFound: no such model, or none of its versions is ready.
        """
        self.find(name)
        return [served for _, served in sorted(self._served[name].items())]

    def announce(self) -> None:
        """Wake who waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()


def parse_version(version: str) -> int:
    """A version of the protocol as a number.

    Raises:
        InvalidRequest: it is not one above 0.
    """
    if not (version.isascii() and version.isdecimal() and int(version[:20]) > 0):
        raise InvalidRequest(
            f"failed to get model version from specified version string '{version}', "
            "version should be an integral value > 0"
        )
    return int(version[:20])
