"""Dockerfiles, read and carried out without a container engine.

The root file system of a stage is this machine's own below a layer of its own (overlayfs), which takes what is written.
So the base image is not proven, but every RUN, COPY, ENV, USER and CMD is.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson

ROOT = Path(__file__).parents[1]
PYTHON = Path(sys._base_executable)  # type: ignore[attr-defined]
PATH = f"{PYTHON.parent}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""As that of the official images, which have their Python in the first place."""


@dataclass
class Stage:
    """What the instructions of one stage come to."""

    base: str
    name: str
    environment: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[str, str]] = field(default_factory=list)
    """RUN, COPY and WORKDIR, in their order."""
    settings: dict[str, str] = field(default_factory=dict)
    """USER, ENTRYPOINT, CMD, HEALTHCHECK and EXPOSE."""


def read(path: Path) -> dict[str, Stage]:
    """The stages of a Dockerfile by their names; each stage that builds on another has its environment and settings."""
    stages: dict[str, Stage] = {}
    stage = Stage("", "")
    for keyword, rest in _instructions(path.read_text()):
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            before = stages.get(base, stage if base == stage.name else Stage("", ""))
            stage = Stage(base, name, dict(before.environment), [*before.steps], dict(before.settings))
            stages[name] = stage
        elif keyword == "ENV":
            stage.environment |= _variables(rest, stage.environment)
        elif keyword in ("RUN", "COPY", "WORKDIR"):
            stage.steps.append((keyword, rest))
        elif keyword != "ARG":
            stage.settings[keyword] = rest
    return stages


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for line in lines.replace("\\\n", " ").splitlines():
        keyword, _, rest = line.partition(" ")
        yield keyword, rest.strip()


def _variables(text: str, before: Mapping[str, str]) -> dict[str, str]:
    known = {"PATH": PATH} | dict(before)
    pairs = (word.split("=", 1) for word in shlex.split(text))
    return {name: re.sub(r"\$(\w+)", lambda match: known[match[1]], value) for name, value in pairs}


def context() -> list[Path]:
    """What `.dockerignore`, which excludes everything and then names exceptions, lets into a build."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*", "the context is everything but a list; this reads only lists of what it is"
    return [ROOT / line[1:] for line in lines if line.startswith("!")]


class Root:
    """A root file system that a Dockerfile changes, for as long as the holder of its mounts lives."""

    def __init__(self, holder: subprocess.Popen[str], directory: Path) -> None:
        self._inside = ["nsenter", f"--target={holder.pid}", "--mount", "chroot", str(directory / "root")]
        self.layer = Path(f"/proc/{holder.pid}/root{directory}/layer")
        """What has been written, below it the paths as in the image."""

    @classmethod
    @contextmanager
    def mounted(cls, directory: Path) -> Iterator[Self]:
        """Mounted in a namespace that nobody else sees; to be made by root.

        Raises:
            PermissionError: this machine allows no mounts.
        """
        # Half a gigabyte in memory: a layer must not lie below what it covers.
        script = f"""set -e
            mount -t tmpfs tmpfs {directory}
            mkdir {directory}/layer {directory}/work {directory}/root
            mount -t overlay overlay -o lowerdir=/,upperdir={directory}/layer,workdir={directory}/work {directory}/root
            mount --rbind /proc {directory}/root/proc
            mount --rbind /dev {directory}/root/dev
            echo mounted
            exec sleep infinity"""
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            said = holder.stdout.readline().strip() if holder.stdout else ""
            if said != "mounted":
                raise PermissionError(f"no file systems can be mounted here: {said}")
            root = cls(holder, directory)
            root._place_python()
            yield root
        finally:
            holder.kill()
            holder.communicate()

    def _place_python(self) -> None:
        """Under the names that the official image gives it and pip, and open to every user."""
        above = " ".join(shlex.quote(str(parent)) for parent in PYTHON.parents)
        self.run(
            f"chmod o+x {above} && cd {shlex.quote(str(PYTHON.parent))} && ln -sf {PYTHON.name} python && "
            "printf '#!/bin/sh\\nexec python -m pip \"$@\"\\n' > pip && chmod 755 pip"
        )

    def build(self, stage: Stage) -> None:
        """Carry out the stage; COPY takes this repository's context, or leaves what another stage put in place."""
        folder = "/"
        for keyword, rest in stage.steps:
            if keyword == "WORKDIR":
                folder = rest
                self.run(f"mkdir -p {rest}")
            elif keyword == "RUN":
                # The registry's settings of this machine stand in for those of a build machine.
                self.run(rest, folder, dict(os.environ) | stage.environment | {"PATH": PATH})
            elif not rest.startswith("--from="):
                source, target = rest.split()
                self._copy(source, target, folder)

    def _copy(self, source: str, target: str, folder: str) -> None:
        place = self.layer / (folder if target == "." else target).lstrip("/")
        for path in context() if source == "." else [ROOT / source]:
            aim = place / path.relative_to(ROOT) if source == "." else place
            aim.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, aim, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                shutil.copy2(path, aim)

    def seal(self) -> None:
        """Make it read-only."""
        self.run("mount -o remount,ro /")

    def run(self, script: str, folder: str = "/", environment: Mapping[str, str] | None = None) -> None:
        """A shell's command as root, which must succeed."""
        command = [*self._inside, "sh", "-euc", f"cd {folder} && {script}"]
        done = subprocess.run(command, env=environment or {"PATH": PATH}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"

    def start(self, command: Sequence[str], stage: Stage, **variables: str) -> subprocess.Popen[str]:
        """A command as the image's user, with its environment and no rights."""
        user, group = stage.settings["USER"].split(":")
        drop = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs", "--inh-caps=-all"]
        environment = {"PATH": PATH} | stage.environment | variables
        return subprocess.Popen(
            [*self._inside, *drop, "--bounding-set=-all", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def words(value: str) -> list[str]:
    """The words of an instruction in its JSON form."""
    found: Any = orjson.loads(value)
    return list(map(str, found))
