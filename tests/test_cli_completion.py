"""The completion scripts, as the shells themselves run them."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import typer.main
from command import call

from gemma_doctor import cli
from gemma_doctor.catalog import RULES
from gemma_doctor.repair.planning.registry import PASSES

ROOT: Any = typer.main.get_command(cli.app)
COMMANDS: dict[str, Any] = ROOT.commands

ASK = """
COMP_WORDS=("${@:2}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
eval "$1"
_gemma_doctor
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(*words: str) -> list[str]:
    """What bash proposes for the last word."""
    script = call("completion", "bash").out
    command = ["bash", "-c", ASK, "bash", script, "gemma-doctor", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_bash_knows_every_option(name: str) -> None:
    known = {word for param in COMMANDS[name].params for word in param.opts if word.startswith("--")}
    assert {word for word in completed(name, "--") if word != "--help"} == known


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        (("sc",), ["scan"]),
        (("",), list(COMMANDS)),
        (("scan", "--loader", "v"), ["vllm"]),
        (("scan", "--loader", "=", "v"), ["vllm"]),
        (("scan", "--loader", "="), ["transformers", "transformers-pre-5.6", "vllm", "llama.cpp"]),
        (("scan", "folder", "--select", "GD10"), [rule.id for rule in RULES if rule.id.startswith("GD10")]),
        (("repair", "folder", "--pass", ""), [one.name for one in PASSES]),
        (("rule", "GD10"), [rule.id for rule in RULES if rule.id.startswith("GD10")]),
        (("rule", "rescale-"), ["rescale-conv", "rescale-residual"]),
        (("verify", "--loss-scale", ""), ["auto"]),
        (("completion", ""), ["bash", "zsh", "fish"]),
        (("scan", "--json", "re"), []),
        (("scan", "mod"), []),
    ],
)
def test_bash_proposes(words: tuple[str, ...], proposed: list[str]) -> None:
    assert completed(*words) == proposed


def test_where_nothing_is_proposed_bash_itself_proposes_files() -> None:
    assert "complete -o bashdefault -o default -F _gemma_doctor gemma-doctor\n" in call("completion", "bash").out


def found(shell: str) -> str:
    """Where a shell is; skips where it is missing (.ci/run installs them)."""
    path = shutil.which(shell)
    return path or pytest.skip(f"no {shell} here")


def typed(shell: str, keys: str, folder: Path) -> str:
    """What ``gemma-doctor`` is called with when these keys are pressed in an interactive shell."""
    said = 'gemma-doctor() { echo "[called with $*]"; }'
    for name in (".bashrc", ".zshrc"):
        (folder / name).write_text(f"{call('completion', shell).out}\n{said}\necho [ready]\n")
    command = [found(shell), *(["--rcfile", ".bashrc"] if shell == "bash" else []), "-i"]
    ours, theirs = pty.openpty()
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "ZDOTDIR": str(folder), "TERM": "dumb", "LC_ALL": "C"}
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    try:
        heard(ours, r"\[ready\]\r?\n")
        os.write(ours, f"{keys}\n".encode())
        return heard(ours, r"\n\[called with (.*)\]\r?\n")
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def heard(terminal: int, pattern: str) -> str:
    """The last group of what a terminal shows by and by."""
    shown, give_up = "", time.monotonic() + 60
    while (match := re.search(pattern, shown)) is None:
        assert time.monotonic() < give_up, shown
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
    return match[match.re.groups]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(
    ("keys", "arguments"),
    [
        ("gemma-doctor sc\tmod\t", "scan model.safetensors"),
        ("gemma-doctor scan --loa\tv\t x", "scan --loader vllm x"),
        ("gemma-doctor repair model.safetensors --pa\trescale-r\t", "repair model.safetensors --pass rescale-residual"),
        ("gemma-doctor rule GD30\t", "rule GD301"),
    ],
)
def test_tab_completes_in_an_interactive_shell(shell: str, keys: str, arguments: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert typed(shell, keys, tmp_path).split() == arguments.split()


@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("gemma-doctor sc", ["scan"]),
        ("gemma-doctor scan --loader v", ["vllm"]),
        ("gemma-doctor scan --loader=v", ["--loader=vllm"]),
        ("gemma-doctor repair x --pass rescale-", ["rescale-conv", "rescale-residual"]),
        ("gemma-doctor rule GD30", ["GD301"]),
        ("gemma-doctor scan mod", ["model.safetensors"]),
        ("gemma-doctor scan --json mod", ["model.safetensors"]),
    ],
)
def test_fish_proposes(line: str, proposed: list[str], tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    script = f'{call("completion", "fish").out}\ncomplete -C "{line}"\n'
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        [found("fish")], input=script, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert [words.partition("\t")[0] for words in done.stdout.splitlines()] == proposed


def test_fish_knows_every_option_and_its_values() -> None:
    lines = call("completion", "fish").out.splitlines()
    for name, command in COMMANDS.items():
        of_command = [line for line in lines if f"_from {name}'" in line]
        for param in command.params:
            for word in param.opts if param.param_type_name == "option" else ():
                flag = f"-l {word[2:]} " if word.startswith("--") else f"-s {word[1:]} "
                assert any(flag in line for line in of_command), (name, word)
    assert any("-l loader -x -a 'transformers transformers-pre-5.6 vllm llama.cpp'" in line for line in lines)
    assert all(line.count("'") % 2 == 0 for line in lines if "\\'" not in line)
