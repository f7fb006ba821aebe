"""``gemma-doctor repair`` as a user runs it: the demo mended, plans saved and applied, refusals, no leavings."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import Array, write
from command import Terminal, call, run
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from gemma_doctor import demo
from gemma_doctor.cli.repair import EPILOG
from gemma_doctor.repair.applying import apply as applying

NOTHING = "\nNothing was written."


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def schema() -> Draft202012Validator:
    """The schema of --json; it refers to that of a plan."""
    plan, outcome = (
        json.loads((files("gemma_doctor") / f"{name}.schema.json").read_text("utf-8")) for name in ("plan", "repair")
    )
    Draft202012Validator.check_schema(outcome)
    return Draft202012Validator(outcome, registry=Registry().with_resource(plan["$id"], Resource.from_contents(plan)))


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "sick"
    demo.build(folder)
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tensors(**values: float) -> Mapping[str, Array]:
    """Sound matrices, an element of each of which is replaced."""
    rng = np.random.default_rng(0)
    found = {f"{name}.weight": rng.normal(0, 0.1, (16, 16)).astype(np.float32) for name in ("a", "b", *values)}
    for name, value in values.items():
        found[f"{name}.weight"][3, 5] = value
    return found


def rules_found(*arguments: str | Path) -> Counter[str]:
    return Counter(finding["rule"] for finding in json.loads(call("scan", *arguments, "--json", "-").out)["findings"])


# the demo, as a user goes about it


def test_the_demo_is_mended_in_a_process_of_its_own(demo_folder: Path, work: Path) -> None:
    before = contents(demo_folder)
    done = run("repair", demo_folder, "--output", "mended")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Plan: 18 edits for GD104, GD201 and GD203.")
    for title in ("rescale-conv (eps: ", "prune-shared-kv (exact: ", "cast-dtype (exact: ", "Left as it is:\n"):
        assert f"\n\n{title}" in done.out
    assert f"\nMended: {work / 'mended'} holds 6 files: " in done.out
    assert done.out.endswith("\nNext:\n  gemma-doctor scan mended  # the mended copy\n")
    assert contents(demo_folder) == before
    assert rules_found("mended") == {"GD106": 1}
    assert call("scan", "mended", "--fail-on", "warning").code == 0
    assert sorted(path.name for path in work.iterdir()) == ["mended"]


def test_a_dry_run_writes_nothing_and_a_saved_plan_gives_the_same_bytes(demo_folder: Path, work: Path) -> None:
    assert call("repair", demo_folder, "--output", "one").code == 0
    (work / "one").rename(work / "first")
    done = call("repair", demo_folder, "--dry-run", "--save-plan", "my plan.json")
    assert done.code == 0
    assert "\nNothing was written. To write the mended copy, give --output DIR instead of --dry-run.\n" in done.out
    assert sorted(path.name for path in work.iterdir()) == ["first", "my plan.json"]
    command = done.out.splitlines()[-1]
    assert command == f"  gemma-doctor repair {demo_folder} --plan 'my plan.json' --output mended  # apply this plan"
    assert call(*shlex.split(command, comments=True)[1:]).code == 0
    assert contents(work / "mended") == contents(work / "first")


def test_a_plan_applies_to_the_same_checkpoint_elsewhere_and_to_no_other(demo_folder: Path, work: Path) -> None:
    write(work / "here", tensors(x=70000.0))
    (work / "there").mkdir()
    for path in (work / "here").iterdir():
        (work / "there" / path.name).write_bytes(path.read_bytes())
    assert call("repair", "here", "--unsafe", "--dry-run", "--save-plan", "plan.json").code == 0
    assert call("repair", "there", "--unsafe", "--plan", "plan.json", "--output", "out").code == 0
    assert rules_found("out") == rules_found("here") - Counter({"GD102": 1}) + Counter({"GD103": 1})
    for other in ("changed", demo_folder):
        if other == "changed":
            write(work / "changed", tensors(x=70001.0))
        done = call("repair", other, "--unsafe", "--plan", "plan.json", "--output", "no")
        assert done.code == 2
        assert not (work / "no").exists()


# healthy, and what stays


def test_a_healthy_checkpoint_is_left_alone(work: Path) -> None:
    write(work / "model", tensors())
    done = call("repair", "model", "--output", "mended")
    assert (done.code, done.out) == (0, f"Healthy, nothing to mend: no rule found anything.\n{NOTHING}\n")
    assert sorted(path.name for path in work.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("value", "options", "code"),
    [
        (np.nan, [], 1),
        (np.nan, ["--fail-on", "never"], 0),
        (40000.0, [], 0),
        (40000.0, ["--fail-on", "warning"], 1),
        (np.nan, ["--unsafe"], 0),
        (np.nan, ["--ignore", "GD101"], 0),
        (np.nan, ["--select", "GD102"], 0),
    ],
)
@pytest.mark.parametrize("where", [["--output", "mended"], ["--dry-run"]])
def test_the_exit_code_is_what_fail_on_makes_of_what_is_left(
    work: Path, value: float, options: list[str], code: int, where: list[str]
) -> None:
    write(work / "model", tensors(x=value))
    done = call("repair", "model", *options, *where)
    assert done.code == code
    written = options == ["--unsafe"] and where != ["--dry-run"]
    assert (work / "mended").exists() is written
    assert (NOTHING in done.out) is not written


def test_what_needs_unsafe_says_so(work: Path) -> None:
    write(work / "model", tensors(x=np.inf))
    done = call("repair", "model", "--output", "mended", "--quiet")
    assert "Left as it is:\nerror GD101\n  x.weight\n      " in done.out
    assert "--unsafe" in done.out


def test_findings_set_aside_are_not_mended(work: Path) -> None:
    write(work / "model", tensors(x=np.inf))
    assert call("scan", "model", "--write-baseline", "known.json").code == 1
    done = call("repair", "model", "--unsafe", "--baseline", "known.json", "--output", "mended")
    assert (done.code, (work / "mended").exists()) == (0, False)
    (work / "model" / "gemma-doctor.toml").write_text('ignore = ["GD101"]')
    done = call("repair", "model", "--unsafe", "--output", "mended")
    assert (done.code, (work / "mended").exists()) == (0, False)
    assert done.err.startswith("settings of gemma-doctor.toml beside the checkpoint hold: ignore GD101")


def test_the_passes_asked_for_are_the_ones_used(demo_folder: Path) -> None:
    done = call("repair", demo_folder, "--pass", "cast-dtype,prune-shared-kv", "--dry-run", "--json", "-")
    plan = json.loads(done.out)["plan"]
    assert {edit["pass"] for edit in plan["edits"]} == {"cast-dtype", "prune-shared-kv"}
    assert {item["reason"] for item in plan["left"] if item["rule"] == "GD104"} == {"--pass rescale-conv would mend it"}


def test_a_calibration_trace_is_used(demo_folder: Path, work: Path) -> None:
    module = "model.vision_tower.timm_model.msfa.ffn.pw_proj.conv"
    trace = {"schema_version": 1, "kind": "trace", "activations": [{"module": module, "peak": 300.0}]}
    (work / "trace.json").write_text(json.dumps(trace))
    call("repair", demo_folder, "--dry-run", "--calibration", "trace.json", "--save-plan", "plan.json")
    edits = json.loads((work / "plan.json").read_text())["edits"]
    assert [edit["exponent"] for edit in edits if edit.get("tensor") == f"{module}.weight"] == [-2]
    done = call("repair", demo_folder, "--output", "fitted", "--calibration", "trace.json")
    assert f"gemma-doctor verify fitted --against {demo_folder}" in done.out  # whoever traced can run models


def test_the_loader_decides_what_may_go(demo_folder: Path) -> None:
    done = call("repair", demo_folder, "--loader", "llama.cpp", "--dry-run", "--quiet")
    assert "the loader llama.cpp needs it" in " ".join(done.out.split())


# documents


def test_json_is_alone_on_standard_output_and_obeys_the_schema(demo_folder: Path, work: Path) -> None:
    done = run("repair", demo_folder, "--output", "mended", "--json", "-")
    assert (done.code, done.err) == (0, "")
    document = json.loads(done.out)
    schema().validate(document)
    assert document["applied"]["output"] == str(work / "mended")
    hashes = contents(work / "mended")
    assert {file["name"]: file["sha256"] for file in document["applied"]["files"]} == {
        name: digest for name, digest in hashes.items() if name != "gemma-doctor.json"
    }
    assert len(document["plan"]["edits"]) == 18


def test_json_of_a_dry_run_says_that_nothing_was_applied(work: Path) -> None:
    write(work / "model", tensors(x=np.inf))
    done = call("repair", "model", "--dry-run", "--json", "out.json")
    assert done.code == 1
    document = json.loads((work / "out.json").read_text())
    schema().validate(document)
    assert document["applied"] is None
    assert document["plan"]["left"][0]["severity"] == "error"
    assert NOTHING in done.out


def test_a_plan_on_standard_output_is_alone(demo_folder: Path, work: Path) -> None:
    done = call("repair", demo_folder, "--dry-run", "--save-plan", "-")
    assert json.loads(done.out)["kind"] == "plan"
    assert list(work.iterdir()) == []


def test_quiet_prints_how_much_and_what_is_left(demo_folder: Path, work: Path) -> None:
    done = call("repair", demo_folder, "--output", work / "mended", "--quiet")
    assert re.findall(r"^(\w+): ", done.out, re.MULTILINE) == ["Plan", "Mended"]
    assert "Left as it is:" in done.out
    assert "Next:" not in done.out
    assert "times 2^" not in done.out


def test_untouched_files_are_linked(work: Path) -> None:
    write(work / "model", {"model.a.weight": tensors()["a.weight"]}, {"dtype": "bfloat16"})
    done = call("repair", "model", "--output", "mended", "--link", "--pass", "cast-dtype")
    assert done.code == 0, done.out
    one, other = (work / folder / "model.safetensors" for folder in ("model", "mended"))
    assert one.samefile(other)
    assert re.search(r" kB written and 1\.\d+ kB hard-linked in ", done.out)


def test_a_progress_bar_where_somebody_can_see_it(work: Path) -> None:
    write(work / "model", tensors(x=np.inf))
    assert "repairing" in call("repair", "model", "--unsafe", "--output", "one", stream=Terminal).err
    assert call("repair", "model", "--unsafe", "--output", "two", "--quiet", stream=Terminal).err == ""


# refusals: exit code 2, one sentence on standard error, nothing on standard output, nothing written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "where to? Give --output DIR for the mended copy, or --dry-run to see the plan only"),
        (["--output", "full"], "full: this folder is not empty. Give a new one, or --force to replace it."),
        (["--output", "model/inside"], "this lies inside the source"),
        (["--output", "model"], "this is the source, which is never touched"),
        (["--output", "out", "--pass", "rescale-cov"], "no pass 'rescale-cov'; did you mean 'rescale-conv'?"),
        (
            ["--output", "out", "--pass", "upcast-conv", "--pass", "rescale-conv"],
            "the passes rescale-conv and upcast-conv mend the same tensors in different ways: ask for one of them",
        ),
        (
            ["--output", "out", "--pass", "clamp-overflow"],
            "the pass clamp-overflow changes the function: add --unsafe to allow it",
        ),
        (
            ["--output", "out", "--plan", "plan.json", "--pass", "x", "--target-dtype", "bfloat16"],
            "--plan applies a plan as it is, and scans nothing: leave out --target-dtype, --pass",
        ),
        (["--output", "out", "--plan", "plan.json"], "plan.json has 1 edits that change the function, the first by"),
        (["--output", "out", "--plan", "none.json"], "none.json is not a plan that can be read: No such file"),
        (["--output", "out", "--calibration", "none.json"], "none.json is not a trace that can be read: No such file"),
        (["--output", "out", "--json", "-", "--save-plan", "-"], "--json and --save-plan cannot both go to"),
        (["--output", "out", "--save-plan", "nowhere/plan.json"], "its folder is missing"),
        (["--output", "out", "--json", "model/model.safetensors"], "is named like a tensor file"),
    ],
)
def test_a_refusal_is_one_sentence_and_writes_nothing(work: Path, options: list[str], message: str) -> None:
    write(work / "model", tensors(x=70000.0))
    call("repair", "model", "--unsafe", "--dry-run", "--save-plan", "plan.json")
    (work / "full").mkdir()
    (work / "full" / "file").touch()
    before = contents(work)
    done = call("repair", "model", *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("gemma-doctor: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert contents(work) == before
    assert not (work / "out").exists()


def test_force_replaces_what_is_there(work: Path) -> None:
    write(work / "model", tensors(x=70000.0))
    (work / "full").mkdir()
    (work / "full" / "file").touch()
    assert call("repair", "model", "--unsafe", "--output", "full", "--force").code == 0
    assert sorted(contents(work / "full")) == ["gemma-doctor.json", "model.safetensors"]


def test_what_could_not_be_measured_is_not_repaired(work: Path) -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (work / "model").mkdir()
    (work / "model" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    done = call("repair", "model", "--output", "out", "--fail-on", "never")
    assert (done.code, done.out) == (2, "")
    assert "cannot be repaired before all of it can be measured; 0 of 1 tensors were: a, " in done.err
    assert not (work / "out").exists()


def test_an_interrupted_repair_leaves_nothing(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(work / "model", tensors(x=70000.0))

    def interrupt(*_: Any) -> None:  # noqa: ANN401
        assert len(list(work.iterdir())) == 2  # the source, and the folder that would become the output
        raise KeyboardInterrupt

    monkeypatch.setattr(applying, "prove", interrupt)
    done = call("repair", "model", "--unsafe", "--output", "out")
    assert (done.code, done.err) == (130, "gemma-doctor: interrupted\n")
    assert sorted(path.name for path in work.iterdir()) == ["model"]


def test_the_scan_proposes_the_repair(demo_folder: Path, work: Path) -> None:
    line = f"  gemma-doctor repair {demo_folder} --output mended  # write a mended copy"
    assert line in call("scan", demo_folder).out.splitlines()
    write(work / "model", tensors(x=70000.0))
    line = "  gemma-doctor repair model --output mended --unsafe  # at a price: it changes the function"
    assert line in call("scan", "model").out.splitlines()
    assert "gemma-doctor repair" not in call("scan", "model", "--ignore", "GD102").out


def test_the_help_says_what_the_exit_codes_mean() -> None:
    assert "1 findings at or above --fail-on" in EPILOG
    assert "With --dry-run, the code that the repair would have." in EPILOG
