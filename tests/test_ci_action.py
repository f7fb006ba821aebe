"""action.yml and the pre-commit hook: their own shell lines, run for real on checkpoints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoints import write
from test_cli_outputs import sick

from gemma_doctor.cli.hook import sources

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS: dict[str, dict[str, Any]] = {step["id"]: step for step in ACTION["runs"]["steps"]}
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
BASH = ["bash", "--noprofile", "--norc", "-eo", "pipefail"]  # GitHub's own command for `shell: bash`


@dataclass(frozen=True, slots=True)
class Job:
    """A job of a workflow.

    Attributes:
        workspace: What it has checked out.
        temp: The runner's temporary folder.
    """

    workspace: Path
    temp: Path

    def run(self, step: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> tuple[int, str, dict[str, str]]:
        """Run a step's script.

        Args:
            step: Its id.
            inputs: The action's inputs, where they are not the defaults.
            outputs: Outputs of the steps before, by ``step.name``; also what the expression ``github.action_path`` is.

        Returns:
            Exit code, what it printed, and the step's outputs.
        """
        files = {name: self.temp / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        files["GITHUB_OUTPUT"].write_text("", encoding="utf-8")
        given = {name: value.get("default", "") for name, value in ACTION["inputs"].items()} | dict(inputs)
        known = {f"inputs.{name}": value for name, value in given.items()} | dict(outputs)
        env = {name: expanded(str(value), known) for name, value in STEPS[step].get("env", {}).items()}
        script = self.temp / f"{step}.sh"
        script.write_text(STEPS[step]["run"], encoding="utf-8")
        done = subprocess.run(
            [*BASH, script],
            cwd=self.workspace,
            env={
                **os.environ,
                **{name: str(path) for name, path in files.items()},
                "RUNNER_TEMP": str(self.temp),
                "GITHUB_ACTIONS": "true",
                "GITHUB_WORKSPACE": str(self.workspace),
                **env,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        lines = files["GITHUB_OUTPUT"].read_text(encoding="utf-8").splitlines()
        return done.returncode, done.stdout + done.stderr, dict(line.split("=", 1) for line in lines)

    def scan(self, **inputs: str) -> tuple[str, dict[str, str]]:
        """Run the scan with these inputs: what it printed, and its outputs."""
        given = {name.replace("_", "-"): value for name, value in inputs.items()}
        code, said, outputs = self.run("scan", given, {})
        assert code == 0, said
        return said, outputs


def expanded(text: str, known: Mapping[str, str]) -> str:
    """The text with the values of its expressions."""
    return re.sub(r"\$\{\{ ([a-z_.-]+) \}\}", lambda match: known[match[1]], text)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job in a workspace that holds the checkpoint ``model``; gemma-doctor is this one."""
    workspace, temp = tmp_path / "workspace", tmp_path / "temp"
    write(workspace / "model", sick(), shards=2)
    (temp / "gemma-doctor" / "bin").mkdir(parents=True)
    executable(temp / "gemma-doctor" / "bin" / "gemma-doctor", f'exec "{sys.executable}" -m gemma_doctor "$@"')
    return Job(workspace, temp)


def executable(path: Path, line: str) -> None:
    """Write a shell script of one line."""
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)


def test_no_script_holds_an_expression() -> None:
    scripts = [step["run"] for step in STEPS.values() if "run" in step]
    assert len(scripts) == 3
    assert [script for script in scripts if "${{" in script] == []


def test_every_input_is_described_documented_and_used() -> None:
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    for name, what in ACTION["inputs"].items():
        assert what["description"]
        assert f"inputs.{name}" in text
        default = f"`{what['default']}`" if what.get("default") else ""
        assert f"| `{name}` | {default} |".replace("  ", " ") in page.replace("  ", " ")


def test_a_sick_checkpoint_gives_every_report_annotations_and_a_summary(job: Job) -> None:
    said, outputs = job.scan(source="model")
    assert outputs["exit-code"] == "1"
    assert outputs["complete"] == "true"
    reports = sorted(path.name for path in Path(outputs["reports"]).iterdir())
    assert reports == ["report.html", "report.json", "report.md", "report.sarif", "report.xml"]
    assert "\n::error file=model/model.safetensors.index.json,line=" in said
    summary = (job.temp / "GITHUB_STEP_SUMMARY").read_text(encoding="utf-8")
    assert summary == (Path(outputs["reports"]) / "report.md").read_text(encoding="utf-8")


def test_the_last_step_fails_the_job_as_the_scan_would(job: Job) -> None:
    for code in (0, 1, 2):
        assert job.run("verdict", {}, {"steps.scan.outputs.exit-code": str(code)})[0] == code


def words(job: Job, **inputs: str) -> list[str]:
    """What the scan is called with, after the reports that it writes."""
    executable(job.temp / "gemma-doctor" / "bin" / "gemma-doctor", f"printf '%s\\0' \"$@\" > '{job.temp}/words'")
    job.scan(**inputs)
    called = (job.temp / "words").read_text(encoding="utf-8").split("\0")[:-1]
    assert called[:2] == ["scan", "--json"]
    return called[called.index("--fail-on") :]


def test_every_input_reaches_the_scan(job: Job) -> None:
    assert words(job, source="model") == ["--fail-on", "error", "--", "model"]
    inputs = {"fail_on": "note", "baseline": "known.json", "config": "my rules.toml"}
    assert words(job, source="a b", **inputs, options="--target-dtype\nbfloat16\n\n--quiet") == [
        *("--fail-on", "note", "--baseline", "known.json", "--config", "my rules.toml"),
        *("--target-dtype", "bfloat16", "--quiet", "--", "a b"),
    ]


def test_what_cannot_be_scanned_uploads_nothing(job: Job) -> None:
    said, outputs = job.scan(source="nowhere")
    assert outputs["exit-code"] == "2"
    assert "complete" not in outputs
    assert "nowhere: no such file or folder" in said


@pytest.mark.parametrize(
    "hostile", ["$(touch pwned)", "`touch pwned`", "; touch pwned", "' ; touch pwned '", '" ; touch pwned "', "-h", "*"]
)
def test_an_input_is_data_and_no_command(job: Job, hostile: str) -> None:
    for name in ("source", "fail_on", "baseline", "config", "options"):
        assert words(job, **{"source": "model", name: hostile}).count(hostile) == 1
    assert words(job, source=hostile)[-2:] == ["--", hostile]
    assert not (job.workspace / "pwned").exists()


def test_uploads_wait_for_reports_and_can_be_switched_off() -> None:
    for step, switch in (("sarif", "upload-sarif == 'true'"), ("artifact", "artifact != ''")):
        assert STEPS[step]["if"] == f"inputs.{switch} && steps.scan.outputs.complete == 'true'"
    assert list(STEPS)[-1] == "verdict"
    assert all("@" in step["uses"] for step in STEPS.values() if "uses" in step)


def test_the_installation_is_of_the_action_itself_in_an_environment_of_its_own(job: Job) -> None:
    python = job.temp / "python with space"
    shutil.rmtree(job.temp / "gemma-doctor")
    log = job.temp / "log"
    inner = f'#!/bin/sh\\necho "$@" >> "{log}"'
    executable(python, f'mkdir -p "$3/bin"; printf \'{inner}\\n\' > "$3/bin/python"; chmod +x "$3/bin/python"')
    known = {"steps.python.outputs.python-path": str(python), "github.action_path": "/the action"}
    code, said, _ = job.run("install", {}, known)
    assert code == 0, said
    assert log.read_text(encoding="utf-8") == "-m pip install --quiet --disable-pip-version-check /the action\n"


def test_the_hook_is_a_script_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"][HOOK["entry"]] == "gemma_doctor.cli.hook:main"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with the hook, which runs this gemma-doctor."""
    folder, tools = tmp_path / "repository", tmp_path / "bin"
    folder.mkdir()
    tools.mkdir()
    executable(
        tools / HOOK["entry"], f'exec "{sys.executable}" -c "from gemma_doctor.cli.hook import main; main()" "$@"'
    )
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "cache"))
    hook = {**HOOK, "language": "system", "args": ["--fail-on=error"]}
    config = {"repos": [{"repo": "local", "hooks": [hook]}]}
    (folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    subprocess.run(["git", "init", "--quiet", folder], check=True)  # noqa: S607  # whichever git there is
    return folder


def pre_commit(repository: Path) -> tuple[int, str]:
    """Stage everything and run the hooks on it."""
    subprocess.run(["git", "add", "--force", "."], cwd=repository, check=True)  # noqa: S607  # as above
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--verbose"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_pre_commit_scans_each_changed_checkpoint_once(repository: Path) -> None:
    (repository / "web").mkdir()
    (repository / "web" / "config.json").write_text("{}", encoding="utf-8")
    write(repository / "sharded", sick(), {"model_type": "other"}, shards=2)
    code, said = pre_commit(repository)
    assert code == 1
    assert re.findall("^gemma-doctor scan ([^.]*)$", said, re.MULTILINE) == ["sharded"]
    assert "error GD102 fp16-weight-overflow" in said


def test_pre_commit_passes_where_no_checkpoint_changes(repository: Path) -> None:
    (repository / "readme.md").write_text("hello", encoding="utf-8")
    code, said = pre_commit(repository)
    assert code == 0
    assert "(no files to check)Skipped" in said


def test_a_file_belongs_to_its_folder_s_checkpoint_or_stands_alone(tmp_path: Path) -> None:
    write(tmp_path / "one", sick(), {"model_type": "other"}, shards=2)
    shards = sorted((tmp_path / "one").iterdir())
    assert sources(shards) == [tmp_path / "one"]
    write(tmp_path / "pair", sick())
    shutil.copy(tmp_path / "pair" / "model.safetensors", tmp_path / "pair" / "other.safetensors")
    assert sources([tmp_path / "pair" / "other.safetensors"]) == [tmp_path / "pair" / "other.safetensors"]
    assert sources([tmp_path / "pair" / "model.safetensors"]) == [tmp_path / "pair"]
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert sources([tmp_path / "config.json"]) == []
