"""The log settings that a client may read and change: which levels are written, as Triton names them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from stn_serve.errors import InvalidRequest, Unsupported

LEVELS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
FIXED = {"log_file": "", "log_format": "default"}
"""What the process was started with decides; a client may only repeat it."""
FIXED_WORDS = {"log_file": "log file location", "log_format": "log format"}


class LogSettings(logging.Filter):
    """A filter for the process's log handlers; `log_verbose_level` above 0 adds the debug messages."""

    def __init__(self) -> None:
        super().__init__()
        level = logging.getLogger("stn_serve").getEffectiveLevel()
        self._enabled = {name: level <= number for name, number in LEVELS.items()}
        self._verbose_level = int(level <= logging.DEBUG)

    def install(self) -> None:
        """Filter what the handlers of the root logger write."""
        for handler in logging.getLogger().handlers:
            handler.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record's level is switched on."""
        name = next((name for name, number in reversed(LEVELS.items()) if record.levelno >= number), None)
        return self._enabled[name] if name else self._verbose_level > 0

    def read(self) -> dict[str, bool | int | str]:
        """All settings, by name."""
        return {**FIXED, **self._enabled, "log_verbose_level": self._verbose_level}

    def check(self, settings: Mapping[str, object]) -> None:
        """Refuse what cannot be changed.

        Raises:
            InvalidRequest: an unknown setting, or a value of another type.
            Unsupported: a setting that is fixed when the server starts.
        """
        for name, value in settings.items():
            _check(name, value)

    def change(self, settings: Mapping[str, object]) -> None:
        """Change some of them, or none if one of them is wrong.

        Raises:
            InvalidRequest: an unknown setting, or a value of another type.
            Unsupported: a setting that is fixed when the server starts.
        """
        self.check(settings)
        self._enabled |= {name: value is True for name, value in settings.items() if name in LEVELS}
        level = settings.get("log_verbose_level", self._verbose_level)
        self._verbose_level = level if isinstance(level, int) else 0
        logging.getLogger("stn_serve").setLevel(logging.DEBUG if self._verbose_level else logging.INFO)


def _check(name: str, value: object) -> None:
    if name in FIXED:
        if value != FIXED[name]:
            raise Unsupported(f"{FIXED_WORDS[name]} can not be updated through network protocol")
    elif name in LEVELS:
        if not isinstance(value, bool):
            raise InvalidRequest(f"expect boolean for '{name}'")
    elif name != "log_verbose_level":
        raise InvalidRequest(f"unknown log setting '{name}', expected one of {', '.join([*LEVELS, *FIXED])}")
    elif type(value) is not int or not 0 <= value < 2**32:
        raise InvalidRequest("expect unsigned integer for 'log_verbose_level'")
