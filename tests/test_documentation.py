"""What the documentation shows must run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from served import Served

CLIENT = Path(__file__).parent.parent / "docs" / "client.md"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.full((60, 80, 3), 255, np.uint8)).save(path)
    return path


def blocks(language: str, served: Served) -> Iterator[str]:
    """The code blocks of the page, which shall speak to this server."""
    for block in re.findall(rf"^```{language}\n(.*?)^```", CLIENT.read_text(), re.MULTILINE | re.DOTALL):
        yield block.replace("localhost:8001", served.grpc).replace("localhost:8000", served.http)


def run(command: list[str], photo: Path) -> str:
    finished = subprocess.run(command, cwd=photo.parent, capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_python_of_the_client_page_runs(vision_server: Served, photo: Path) -> None:
    """As one program, in the order of the page."""
    code = "\n".join(blocks("python", vision_server))
    printed = run([sys.executable, "-W", "ignore::ResourceWarning", "-c", code], photo)
    assert printed.startswith("bright 0.99")
    assert "this one failed: expected an image as JPEG" in printed
    assert "(2, 3) (2, 1, 2, 3)" in printed
    assert "got 6 bytes of a GIF" in printed
    assert printed.endswith("99 bright\n")
    assert (photo.parent / "answer.png").exists()


def test_the_curl_of_the_client_page_runs(vision_server: Served, photo: Path) -> None:
    [code] = blocks("sh", vision_server)
    printed = run(["bash", "-euo", "pipefail", "-c", code.replace("curl", "curl --silent --show-error")], photo)
    assert printed.count('"model_name":"vision"') == 3
    assert printed.count('"crop":"iVBOR') == 1
