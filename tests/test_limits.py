from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from stn_serve.limits import available_cpus, available_memory_bytes, raise_open_files, share_among

GB = 2**30


def tree(root: Path, membership: str, files: dict[str, str]) -> Path:
    """A machine's files, as far as they tell of control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture(autouse=True)
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    yield
    share_among(1)


@pytest.mark.parametrize(
    ("membership", "files", "cpus", "memory"),
    [
        ("0::/", {"cpu.max": "250000 100000\n", "memory.max": f"{GB}\n"}, 3, GB),
        ("0::/", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, 16, None),
        # The tightest of all that are around the process.
        (
            "0::/pod/box",
            {"pod/cpu.max": "200000 100000", "pod/box/cpu.max": "800000 100000", "pod/memory.max": str(GB)},
            2,
            GB,
        ),
        # A container that sees the host's path, but only its own tree.
        ("0::/kubepods/pod1/box2", {"cpu.max": "400000 100000", "memory.max": str(GB)}, 4, GB),
        (
            "5:memory:/box\n3:cpu,cpuacct:/box\n",
            {
                "cpu/box/cpu.cfs_quota_us": "150000\n",
                "cpu/box/cpu.cfs_period_us": "100000\n",
                "memory/box/memory.limit_in_bytes": f"{GB}\n",
            },
            2,
            GB,
        ),
        (
            "5:memory:/\n3:cpu,cpuacct:/\n",
            {
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            16,
            None,
        ),
        ("", {}, 16, None),
    ],
)
def test_what_control_groups_grant(
    tmp_path: Path, membership: str, files: dict[str, str], cpus: int, memory: int | None
) -> None:
    root = tree(tmp_path, membership, files)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert available_cpus(root) == cpus
    assert available_memory_bytes(root) == (memory or machine)


def test_workers_divide_the_cpus(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/", {"cpu.max": "500000 100000", "memory.max": str(GB)})
    for workers, each in ((2, 2), (5, 1), (9, 1)):
        share_among(workers)
        assert available_cpus(root) == each
        assert available_memory_bytes(root) == GB // workers


def test_as_many_open_files_as_allowed() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert raise_open_files() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
