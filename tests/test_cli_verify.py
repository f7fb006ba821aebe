"""``gemma-doctor verify`` as its user runs it: exit codes, documents, and the way to a repair."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torchvision_operators
from checkpoints import healthy, tiny_gemma2_config, tiny_gemma3_config, tiny_gemma3n_text_config, write
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

import gemma_doctor
from gemma_doctor.cli import app
from gemma_doctor.repair.evidence.calibration import read_calibration
from gemma_doctor.reports import machine


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def run(*words: str | Path) -> Done:
    """The command line in this process: loading torch and transformers takes longer than what is tested."""
    with torch.enable_grad():
        done = CliRunner().invoke(app, [*map(str, words)])
    return Done(done.exit_code, done.stdout, done.stderr)


def in_a_process(*words: str | Path) -> Done:
    """The command line in a process of its own."""
    command = [sys.executable, torchvision_operators.__file__, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_gemma3_config()
    return write(tmp_path_factory.mktemp("sound") / "checkpoint", healthy(config), config)


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedding leaves float16's range once it is multiplied by sqrt(16)."""
    config = tiny_gemma3_config()
    tensors = healthy(config)
    tensors["model.embed_tokens.weight"][:, 0] = 30_000.0
    return write(tmp_path_factory.mktemp("sick") / "checkpoint", tensors, config)


def test_a_model_that_no_guard_knows_is_refused_and_not_called_guarded(tmp_path: Path) -> None:
    config = tiny_gemma2_config()
    done = run("verify", write(tmp_path / "checkpoint", healthy(config), config), "--seq-len", "8", "--guard")
    assert done.returncode == 2
    assert "--guard knows nothing in a Gemma2ForCausalLM. It knows Gemma 3 and Gemma 3n." in done.stderr


def test_a_sound_model_exits_with_0_and_says_what_was_measured(sound: Path, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "report.json", "--trace", tmp_path / "trace.json")
    done = in_a_process("verify", sound, "--seq-len", "8", *files)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Sound. Ran forward and backward in float16 with text: no operation overflowed.")
    for said in ("none overflowed", "logits: KL", "(bfloat16: KL", "loss scales 2^0 to 2^", "Not as on a T4:"):
        assert said in done.stdout
    document = json.loads((tmp_path / "report.json").read_text())
    schema = json.loads(Path(gemma_doctor.__file__).with_name("report.schema.json").read_text())
    Draft202012Validator(schema).validate(document)
    report = machine.from_json((tmp_path / "report.json").read_text())
    assert report.complete
    assert {activation.phase for activation in report.activations} == {"load", "forward", "backward"}
    calibration = read_calibration(tmp_path / "trace.json")
    assert calibration.modules["model.layers.0.mlp.down_proj"].peak > 0


def test_a_sick_model_exits_with_1_and_names_the_operation(sick: Path) -> None:
    done = in_a_process("verify", sick, "--seq-len", "8", "--no-backward")
    assert done.returncode == 1, done.stderr
    assert "error GD401 fp16-forward-overflow" in done.stdout
    assert "aten.mul in model.embed_tokens makes 8 of 128 elements inf or NaN" in done.stdout
    assert "the float32 reference reaches 120,000 there, 0.87 bits beyond 65504" in done.stdout
    assert run("verify", sick, "--seq-len", "8", "--no-backward", "--fail-on", "never", "-q").returncode == 0


def test_what_comes_next_is_said_with_the_same_inputs(sick: Path, tmp_path: Path) -> None:
    """Whoever traced goes on with that trace, and who did not, traces what was run."""
    inputs = ("--modality", "text", "--seq-len", "8", "--seed", "3")
    untraced = run("verify", sick, *inputs, "--no-backward").stdout
    said = "--modality text --seq-len 8 --seed 3"
    assert f"gemma-doctor verify {sick} {said} --no-backward --trace trace.json" in untraced
    assert f"gemma-doctor repair {sick} --output mended --calibration trace.json" in untraced
    assert f"gemma-doctor verify mended {said} --no-backward --against {sick}" in untraced
    trace = tmp_path / "own.json"
    traced = run("verify", sick, *inputs, "--no-backward", "--trace", trace).stdout
    assert "--trace" not in traced
    assert f"gemma-doctor repair {sick} --output mended --calibration {trace}" in traced


def test_where_float32_is_not_finite_nothing_is_said_to_be_sound(tmp_path: Path) -> None:
    config = tiny_gemma3_config()
    tensors = healthy(config)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    done = run("verify", write(tmp_path / "checkpoint", tensors, config), "--seq-len", "8", "--no-backward")
    assert done.returncode == 2
    assert "with text: inf or NaN, in float32 too." in done.stdout
    assert " places, in float32 too\n" in done.stdout
    assert "overflowed" not in done.stdout


def test_without_a_reference_infinities_are_still_found(sick: Path, sound: Path) -> None:
    done = run("verify", sick, "--seq-len", "8", "--no-backward", "--reference", "none")
    assert (done.returncode, "aten.mul in model.embed_tokens" in done.stdout) == (1, True)
    assert run("verify", sound, "--seq-len", "8", "--no-backward", "--reference", "none").returncode == 0


def test_amp_keeps_the_weights_in_float32(sick: Path) -> None:
    """The embedding is no product: autocast leaves it in float32, where it fits."""
    done = run("verify", sick, "--seq-len", "8", "--no-backward", "--mode", "amp", "--json", "-")
    assert "model.embed_tokens" not in [
        finding["evidence"]["module"] for finding in json.loads(done.stdout)["findings"] if finding["rule"] == "GD401"
    ]


def test_gradient_checkpointing_gives_the_same_loss(sound: Path) -> None:
    def loss(*more: str) -> float:
        document = json.loads(run("verify", sound, "--seq-len", "8", "--loss-scale", "64", "--json", "-", *more).stdout)
        (found,) = document["verification"]["runs"]
        assert [trial["outcome"] for trial in found["loss_scales"]["trials"]] == ["sound"]
        return float(found["loss"])

    assert loss() == loss("--gradient-checkpointing")


def test_no_gradient_is_asked_for_what_is_frozen(sound: Path) -> None:
    """The loss stays, and so does every gradient but those of the first layer, which nothing else reads."""

    def seen(*more: str) -> tuple[float, dict[str, int], list[str]]:
        words = ("--seq-len", "8", "--loss-scale", "64", "--json", "-", *more)
        document = json.loads(run("verify", sound, *words).stdout)
        (found,) = document["verification"]["runs"]
        backward = [one for one in document["activations"] if one["phase"] == "backward" and one["op"] == "aten.mm"]
        layers = [one["module"] for one in backward if ".layers.0." in one["module"]]
        return found["loss"], {"all": len(backward), "first": len(layers)}, document["verification"]["frozen"]

    loss, gradients, frozen = seen()
    again, fewer, globs = seen("--freeze", "model.layers.0.*", "--freeze", "model.embed_tokens.*")
    assert not frozen
    assert globs == ["model.layers.0.*", "model.embed_tokens.*"]
    assert loss == again
    assert gradients["first"] > 0
    assert fewer == {"all": gradients["all"] - gradients["first"], "first": 0}


def test_where_float32_has_no_gradients_either_nothing_is_judged(tmp_path: Path) -> None:
    """An embedding of zeros behind Gemma 3n's AltUp, which takes the root of its mean square."""
    config = tiny_gemma3n_text_config()
    tensors = healthy(config)
    tensors["model.embed_tokens.weight"][:] = 0.0
    checkpoint = write(tmp_path / "checkpoint", tensors, config)
    done = run("verify", checkpoint, "--seq-len", "8", "--html", tmp_path / "report.html")
    assert done.returncode == 2, done.stdout
    said = (
        "Could not tell, a backward pass was not judged. Ran forward and backward in float16 with text: ",
        ": no operation overflowed in the forward pass.\n",
        "\n  backward pass not judged: in float32, too, gradients are inf or NaN\n",
        "\n  the other gradients: loss scales 2^0",
        "\nJudged 1 of 1 run, 1 of them forward only, in ",
        "\nNot judged: float16 backward pass, text: in float32, too, gradients of ",
    )
    assert [words for words in said if words not in done.stdout] == []
    page = (tmp_path / "report.html").read_text()
    assert "<p>Backward pass not judged: in float32, too, gradients are inf or NaN.</p>" in page
    assert "<dt>Runs judged</dt><dd>1<small>of 1, 1 forward only</small></dd>" in page


def test_against_itself_nothing_drifts(sound: Path) -> None:
    done = run("verify", sound, "--seq-len", "8", "--no-backward", "--against", sound)
    assert "float32 logits against the other checkpoint's: KL 0 nats, top-1 100.0%" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modality", "audio"], "a Gemma3ForCausalLM takes text, not audio"),
        (["--modality", "smell"], "--modality smell is unknown"),
        (["--loss-scale", "-3"], "--loss-scale -3 is neither auto nor a positive number"),
        (["--device", "cuda"], "torch sees no CUDA device here"),
        (["--select", "GD1"], "GD1 selects no rule from GD401 to GD405"),
        (["--trace", "t.json", "--reference", "none"], "leave out --reference none"),
        (
            ["--freeze", "tower.*"],
            "--freeze tower.*: no parameter has such a name; they are model.embed_tokens.weight, ",
        ),
        (["--freeze", "*"], "--freeze leaves no parameter to train; to run forward only, --no-backward"),
        (["--freeze", "*", "--no-backward"], "--no-backward trains nothing: leave one out"),
        (["--image", "p.png"], "--image p.png would not be used: a Gemma3ForCausalLM takes text only"),
    ],
)
def test_what_cannot_be_done_exits_with_2_and_says_why(sound: Path, words: list[str], message: str) -> None:
    done = run("verify", sound, *words)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_a_checkpoint_with_a_missing_tensor_is_not_run(tmp_path: Path) -> None:
    """Transformers would fill it with random numbers."""
    config = tiny_gemma3_config()
    tensors = healthy(config)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    done = run("verify", write(tmp_path / "checkpoint", tensors, config), "--seq-len", "8")
    assert done.returncode == 2
    assert "would initialise 1 tensors at random, model.layers.1.mlp.up_proj.weight first" in done.stderr


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (None, "holds no config.json, without which transformers cannot build the model"),
        ({"model_type": "unheard-of"}, "never runs code from a checkpoint"),
    ],
)
def test_a_folder_without_a_known_config_is_not_run(config: dict[str, object] | None, why: str, tmp_path: Path) -> None:
    tensors = {"w": healthy(tiny_gemma3_config())["model.norm.weight"]}
    done = run("verify", write(tmp_path / "checkpoint", tensors, config))
    assert (done.returncode, why in done.stderr) == (2, True), done.stderr
