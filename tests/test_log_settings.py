from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from stn_serve.errors import InvalidRequest, Unsupported
from stn_serve.log_settings import LogSettings


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> Iterator[LogSettings]:
    root, ours = logging.getLogger(), logging.getLogger("stn_serve")
    levels = root.level, ours.level
    root.setLevel(logging.INFO)
    settings = LogSettings()
    caplog.handler.addFilter(settings)
    yield settings
    caplog.handler.removeFilter(settings)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def written(caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    logger = logging.getLogger("stn_serve.test")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logger.log(level, logging.getLevelName(level))
    return [record.message for record in caplog.records]


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({}, ["INFO", "WARNING", "ERROR", "CRITICAL"]),
        ({"log_info": False}, ["WARNING", "ERROR", "CRITICAL"]),
        ({"log_warning": False, "log_error": False}, ["INFO"]),
        ({"log_verbose_level": 1}, ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]),
        ({"log_verbose_level": 2, "log_info": False}, ["DEBUG", "WARNING", "ERROR", "CRITICAL"]),
        ({"log_file": "", "log_format": "default"}, ["INFO", "WARNING", "ERROR", "CRITICAL"]),
    ],
)
def test_levels_are_switched_while_the_server_runs(
    logs: LogSettings, caplog: pytest.LogCaptureFixture, changes: dict[str, object], levels: list[str]
) -> None:
    logs.change(changes)
    assert written(caplog) == levels
    assert logs.read().items() >= changes.items()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"log_info": 1}, InvalidRequest, "expect boolean for 'log_info'"),
        ({"log_verbose_level": -1}, InvalidRequest, "expect unsigned integer for 'log_verbose_level'"),
        ({"log_verbose_level": True}, InvalidRequest, "expect unsigned integer"),
        ({"log_verbose_level": None}, InvalidRequest, "expect unsigned integer"),
        ({"nonsense": True}, InvalidRequest, "unknown log setting 'nonsense', expected one of log_info"),
        ({"log_file": "/tmp/x"}, Unsupported, "log file location can not be updated"),
        ({"log_format": "ISO8601"}, Unsupported, "log format can not be updated"),
    ],
)
def test_a_wrong_setting_changes_nothing(
    logs: LogSettings, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    before = logs.read()
    with pytest.raises(error, match=message):
        logs.change({"log_warning": False, **changes})
    assert logs.read() == before
