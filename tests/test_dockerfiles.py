"""The images of deploy/, made and run as far as that goes without a container engine."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from socket import socket

import pytest
from dockerfiles import ROOT, Root, Stage, context, read, words
from packaging.requirements import Requirement
from PIL import Image
from requirements import missing

from stn_serve import Client

SERVING = ROOT / "deploy" / "Dockerfile"
TRAINING = ROOT / "deploy" / "Dockerfile.train"
LIMIT_MB = 300
"""Of the packages in the CPU image, unpacked; docs/deployment.md states what they are."""
READY_S = 60


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return {_normal(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def cpu_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Root, Stage]]:
    """The CPU image, its root file system read-only. Takes as long as pip does: half a minute on a quiet machine."""
    stages = read(SERVING)
    try:
        with Root.mounted(tmp_path_factory.mktemp("image")) as root:
            for name in ("cpu-packages", "cpu"):
                root.build(stages[name])
            root.seal()
            yield root, stages["cpu"]
    except (PermissionError, FileNotFoundError) as error:
        missing(f"images are made by root, where file systems can be mounted: {error}")


def packages(root: Root) -> dict[str, str]:
    """Name and version of what is installed."""
    found = (root.layer / "opt/stn/lib").glob("python*/site-packages/*.dist-info/METADATA")
    metadata = [importlib.metadata.PathDistribution(path.parent) for path in found]
    return {_normal(package.name): package.version for package in metadata}


@pytest.mark.parametrize("path", [SERVING, TRAINING], ids=lambda path: path.name)
def test_the_linter_finds_nothing(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_builds_get_the_packages_and_the_models_only() -> None:
    assert all(path.exists() for path in context())
    assert {path.name for path in context() if path.is_dir()} == {"stn_serve", "training", "export", "model_repository"}


def test_the_cpu_image_has_what_constraints_pin_and_neither_torch_nor_cuda(cpu_image: tuple[Root, Stage]) -> None:
    installed = packages(cpu_image[0])
    assert installed.pop("stn-serve") == importlib.metadata.version("stn-serve")
    pinned = pins("constraints.txt")
    assert {name: pinned.get(name) for name in installed} == installed
    assert "onnxruntime" in installed
    assert not installed.keys() & {"torch", "onnx", "onnxruntime-gpu", "pip"}
    requirement = importlib.metadata.PathDistribution(
        next((cpu_image[0].layer / "opt/stn/lib").glob("python*/site-packages/stn_serve-*.dist-info"))
    ).requires
    assert not any(text.startswith("onnxruntime-gpu") for text in requirement or ())


def test_the_cpu_image_is_small(cpu_image: tuple[Root, Stage]) -> None:
    used = subprocess.run(
        ["du", "--summarize", "--block-size=1MB", cpu_image[0].layer / "opt/stn"], capture_output=True, text=True
    )
    assert int(used.stdout.split()[0]) < LIMIT_MB


def free_ports() -> dict[str, str]:
    """As `docker run --env` gives them: CI has no network of its own for a container."""
    names = ("STN_SERVE_GRPC_PORT", "STN_SERVE_HTTP_PORT", "STN_SERVE_METRICS_PORT")
    with socket() as one, socket() as two, socket() as three:
        for listener in (one, two, three):
            listener.bind(("127.0.0.1", 0))
        return {name: str(free.getsockname()[1]) for name, free in zip(names, (one, two, three), strict=True)}


def become_healthy(root: Root, stage: Stage, ports: dict[str, str]) -> None:
    """Repeat the image's own check, as an engine does."""
    check = words(stage.settings["HEALTHCHECK"].partition("CMD ")[2])
    deadline = time.monotonic() + READY_S
    while True:
        probe = root.start(check, stage, **ports)
        said = probe.communicate()[0]
        if probe.returncode == 0:
            return
        assert time.monotonic() < deadline, said


def test_the_cpu_image_serves_read_only_without_rights_and_stops(cpu_image: tuple[Root, Stage]) -> None:
    root, stage = cpu_image
    ports = free_ports()
    server = root.start(words(stage.settings["ENTRYPOINT"]) + words(stage.settings["CMD"]), stage, **ports)
    try:
        become_healthy(root, stage, ports)
        with Client(f"localhost:{ports['STN_SERVE_GRPC_PORT']}") as client:
            assert client.predict(Image.new("L", (42, 42)), model="digits").label
    finally:
        server.terminate()
        log = server.communicate(timeout=60)[0]
    assert server.returncode == 0, log
    assert '"serving"' in log  # as JSON, where the engine collects it


def test_the_gpu_image_pins_the_cuda_that_its_onnxruntime_asks_for() -> None:
    pinned = pins("deploy/constraints-gpu.txt")
    assert not pinned.keys() & pins("constraints.txt").keys()
    asked = [Requirement(text) for text in importlib.metadata.requires("onnxruntime-gpu") or ()]
    extras = ({"extra": "cuda"}, {"extra": "cudnn"})
    libraries = [one for one in asked if one.marker and any(map(one.marker.evaluate, extras))]
    assert len(libraries) > 3
    for library in libraries:
        assert library.specifier.contains(pinned[_normal(library.name)]), library
    assert any(name.endswith("cu13") for name in pinned)


@pytest.mark.parametrize(("path", "name"), [(SERVING, "cpu"), (SERVING, "gpu"), (TRAINING, "")])
def test_images_run_as_a_number_that_is_not_root(path: Path, name: str) -> None:
    stage = read(path)[name]
    assert stage.settings["USER"] == "10001:10001"
    assert words(stage.settings["ENTRYPOINT"]) == ["stn"]
