from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from served import run_stn
from typer.testing import CliRunner

from stn_serve.cli import COMMANDS, app


def test_help_lists_every_command_without_importing_one() -> None:
    probe = (
        "import sys; sys.argv = ['stn', '--help']; from stn_serve.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'training', 'export', 'onnxruntime')])"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert all(name in result.stdout for name in COMMANDS)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f"Usage: root {name} " in " ".join(result.output.split())


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No module named torch', name='torch')")
    command = [sys.executable, "-m", "stn_serve", "train", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 2
    assert result.stderr == (
        "stn: error: this command needs torch, which is not installed: pip install 'stn-serve[train]'\n"
    )


def test_an_unknown_command_or_option_is_a_usage_error() -> None:
    assert run_stn("fly").returncode == 2
    assert run_stn("serve", "--nope").returncode == 2
    result = run_stn("serve", "--log-level", "loud")
    assert (result.returncode, result.stderr) == (
        2,
        "stn: error: log_level is 'loud', expected debug, info, warning or error\n",
    )
