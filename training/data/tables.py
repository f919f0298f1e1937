"""Tables of text as research data sets have them: a key and a value in each line."""

from __future__ import annotations

from pathlib import Path

from training.data.mnist import DataError


def read_table(path: Path) -> list[tuple[str, str]]:
    """Rows of a key and what follows it.

    Raises:
        DataError: the file is not there, or a line holds no value; says which.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    rows = [line.split(maxsplit=1) for line in lines]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise DataError(f"{path}, line {number}: expected a key and a value, got {lines[number - 1]!r}")
    return [(key, value) for key, value in rows]
