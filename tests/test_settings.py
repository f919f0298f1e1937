from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from served import run_stn
from typer.testing import CliRunner

from stn_serve.cli import app
from stn_serve.setting_sources import environment_variable, flag
from stn_serve.settings import SETTINGS, ServerSettings


def shown(*arguments: str, **environment: str) -> str:
    result = CliRunner().invoke(app, ["serve", "--show-settings", *arguments], env=environment)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_setting_has_its_flag_its_variable_and_its_help() -> None:
    text = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "250"}).output
    for setting in SETTINGS:
        assert flag(setting.name) in text
        assert " ".join(setting.about.help.split()[:4]) in text


def test_a_flag_comes_before_a_variable_before_the_file_before_the_default(tmp_path: Path) -> None:
    file = tmp_path / "stn.toml"
    file.write_text("grpc_port = 1\nhttp_port = 2\nmetrics_port = 3\nallow_shared_memory = true\ngrace_s = 5")
    variables = {environment_variable("grpc_port"): "10", environment_variable("http_port"): "20"}
    lines = shown("--config", str(file), "--grpc-port", "100", "--no-allow-shared-memory", **variables).splitlines()
    assert "grpc_port = 100  # flag --grpc-port" in lines
    assert "http_port = 20  # environment variable STN_SERVE_HTTP_PORT" in lines
    assert f"metrics_port = 3  # file {file}" in lines
    assert f"grace_s = 5.0  # file {file}" in lines
    assert "allow_shared_memory = false  # flag --allow-shared-memory" in lines
    assert 'host = "127.0.0.1"  # default' in lines


def test_what_is_shown_can_be_used_again(tmp_path: Path) -> None:
    file = tmp_path / "stn.toml"
    file.write_text(shown("--model-repository", 'a "strange" päth', "--max-image-pixels", "7"))
    again = tomllib.loads(shown(**{environment_variable("config"): str(file)}))
    assert again == tomllib.loads(file.read_text())
    assert (again["model_repository"], again["max_image_pixels"]) == ('a "strange" päth', 7)
    assert again.keys() == {setting.name for setting in SETTINGS if getattr(ServerSettings(), setting.name) is not None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("grpc_prt = 1", "there is no setting 'grpc_prt'; did you mean grpc_port?"),
        ("nonsense = 1", "there is no setting 'nonsense'; `stn serve --help` lists them"),
        ('grpc_port = "one"', "grpc_port is 'one', expected a whole number"),
        ("grpc_port = true", "grpc_port is True, expected a whole number"),
        ("host = 1", "host is 1, expected a string"),
        ("allow_shared_memory = 1", "allow_shared_memory is 1, expected true or false"),
        ("grace_s = []", "grace_s is [], expected a number"),
        ("a b", "is not TOML: Expected '='"),
        ("grpc_port = 70000", "grpc_port is 70000, expected 0 to 65535"),
        ("grpc_port = 8000", "the ports must differ"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "stn.toml").write_text(content)
    result = run_stn("serve", "--config", str(tmp_path / "stn.toml"))
    assert result.returncode == 2
    assert result.stderr.startswith("stn: error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_file_that_is_missing_is_named() -> None:
    result = run_stn("serve", "--config", "missing.toml")
    assert (result.returncode, result.stderr) == (
        2,
        "stn: error: configuration missing.toml cannot be read: No such file or directory\n",
    )


def test_a_variable_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STN_SERVE_HTTP_PORT", "many")
    result = run_stn("serve")
    assert result.returncode == 2
    assert "Invalid value for '--http-port'" in result.stderr
