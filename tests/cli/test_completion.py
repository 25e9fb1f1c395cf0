"""Completion in the shell: what Tab gives, and how it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlxlava.cli import cli
from tests.conftest import run_command


def completed(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What bash is offered after these words, the last one incomplete: ``kind,value``."""
    monkeypatch.setenv("_MLXLAVA_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    status, offered, errors = run_command(monkeypatch, capsys)
    assert status == 0 and not errors
    return offered.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("mlxlava lo", ["plain,loop"]),
        ("mlxlava train --batch", ["plain,--batch-size"]),
        ("mlxlava loop --weights lava-", ["plain,lava-64"]),
        ("mlxlava loop --weights run", ["plain,runs/mine"]),
        ("mlxlava loop --weights ../", ["file,../"]),
        ("mlxlava score dream", ["file,dream"]),
        ("mlxlava train --recipe dura", ["plain,duralava"]),
        ("mlxlava train --set data.b", ["plain,data.batch_size="]),
        ("mlxlava train lamp.m", ["file,lamp.m"]),
        ("mlxlava loop -o lam", ["file,lam"]),
        ("mlxlava loop --screen we", ["plain,web"]),
    ],
)
def test_tab_completes(
    words: str,
    offered: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/log.jsonl").touch()
    assert completed(words, monkeypatch, capsys) == offered


def test_every_value_that_is_a_file_is_completed() -> None:
    """A parameter without a completion of its own would take that of files away, which a shell has."""
    for name, command in cli.commands.items():
        for each in command.params:
            metavar = each.metavar or ""
            if any(word in metavar for word in ("FILE", "FOOTAGE", "DIR", "RUN", "WEIGHTS", "PATH", "DATA")):
                context = command.make_context(name, [], resilient_parsing=True)
                assert each.shell_complete(context, "no-such"), (name, each.name)


def test_bash_completes_once_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bash = shutil.which("bash")
    if bash is None or subprocess.run([bash, "-c", "((BASH_VERSINFO[0] > 4))"]).returncode:
        pytest.skip("needs a bash that click completes in")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    (tmp_path / ".bashrc").write_text("alias ll='ls -l'")
    for _ in range(2):  # the second time adds nothing
        status, _, said = run_command(monkeypatch, capsys, "completion", "bash")
        assert status == 0 and ".bashrc" in said
    first, line = (tmp_path / ".bashrc").read_text().splitlines()
    assert first == "alias ll='ls -l'" and line.endswith("# mlxlava completion")
    program = tmp_path / "mlxlava"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mlxlava "$@"\n')
    program.chmod(0o755)
    script = (
        '. "$HOME/.bashrc"; COMP_WORDS=(mlxlava export lava --on); COMP_CWORD=3; '
        '_mlxlava_completion mlxlava; echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    ended = subprocess.run([bash, "-c", script], capture_output=True, text=True, env=environment)
    assert ended.stdout.split() == ["--onnx"], ended.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_find_it_when_they_start(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    assert run_command(monkeypatch, capsys, "completion")[0] == 0
    if shell == "fish":
        script = tmp_path / ".config/fish/completions/mlxlava.fish"
        assert not (tmp_path / ".local").exists()
    else:
        script = tmp_path / ".local/share/mlxlava/zsh"
        assert str(script) in (tmp_path / ".zshrc").read_text()
    assert "_MLXLAVA_COMPLETE" in script.read_text()
    if program := shutil.which(shell):
        subprocess.run([program, "-n", script], check=True)


def test_an_unknown_shell_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    status, _, said = run_command(monkeypatch, capsys, "completion")
    assert status == 2 and "tcsh" in said and "bash, zsh, fish" in said
