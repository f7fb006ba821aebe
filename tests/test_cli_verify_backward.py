"""What ``gemma-doctor verify`` says where a backward pass was not run, could not be judged, or was run at one scale."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
import torch
import transformers
from checkpoints import healthy, tiny_gemma3_config, tiny_gemma3_multimodal_config, write
from command import Done, call

LENGTH = ("--seq-len", "8")
VISION = ("--freeze", "model.language_model.*", "--freeze", "model.multi_modal_projector.*")
PASS = "float16 backward pass, text"
NOTHING = "the loss depends on no parameter that is trained"


def verify(*words: str | Path) -> Done:
    """The command line in this process, where other tests switch gradients off."""
    with torch.enable_grad():
        return call("verify", *words, *LENGTH)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_gemma3_config()
    return write(tmp_path_factory.mktemp("sound") / "checkpoint", healthy(config), config)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_gemma3_multimodal_config()
    return write(tmp_path_factory.mktemp("seeing") / "checkpoint", healthy(config), config)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence model: no head, and a pooler that its first output does not depend on."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1}
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=64)).save_pretrained(folder)
    return folder


def test_a_run_without_a_parameter_that_is_trained_has_no_backward_pass_to_judge(seeing: Path, tmp_path: Path) -> None:
    """It ended in a traceback. The picture's run has one, and is judged."""
    done = verify(seeing, *VISION, "--json", tmp_path / "report.json", "--html", tmp_path / "report.html")
    assert done.code == 2, done.err
    assert done.out.startswith(
        "Could not tell, a backward pass was not judged. Ran forward and backward in float16 with text and image: no "
        "operation overflowed in the forward pass.\n"
    )
    text, image = done.out.partition("\ntext run: ")[2].split("\nimage run: ")
    assert f"\n  backward pass not run: {NOTHING}\n" in text
    assert " outputs of operations measured: none overflowed in the forward pass\n" in text
    assert "loss scales" not in text
    assert "\n  loss scales 2^0 to 2^" in image
    assert f"\nNot judged: {PASS}: {NOTHING}, so there is no gradient: --freeze less, pick another input" in done.out
    assert "\nJudged 2 of 2 runs, 1 of them forward only, in " in done.out
    document = json.loads((tmp_path / "report.json").read_text())
    assert [one["tensor"] for one in document["coverage"]["skipped"]] == [PASS]
    assert [run["loss_scales"] is None for run in document["verification"]["runs"]] == [True, False]
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="badge warning">forward pass sound, backward pass not judged</span>') == 1
    assert page.count('class="badge well">sound</span>') == 1
    assert f"<p>Backward pass not run: {NOTHING}.</p>" in page
    assert verify(seeing, *VISION, "--modality", "image").code == 0


def test_where_no_run_has_a_gradient_none_is_said_to_have_run(encoder: Path) -> None:
    """Only the pooler is trained."""
    for reference in ("float32", "none"):
        done = verify(encoder, "--freeze", "e*", "--reference", reference)
        assert done.code == 2, done.err
        assert ". Ran forward in float16 with text: no operation overflowed in the forward pass.\n" in done.out
        assert ", forward only, e* frozen, mode half." in done.out


def test_where_the_forward_pass_fails_no_backward_pass_is_said_to_have_run(tmp_path: Path) -> None:
    config = tiny_gemma3_config()
    tensors = healthy(config)
    tensors["model.embed_tokens.weight"][:, 0] = 30_000.0
    done = verify(write(tmp_path / "checkpoint", tensors, config), "--markdown", tmp_path / "report.md")
    assert done.code == 1, done.err
    assert done.out.startswith("Sick: 1 error. Ran forward in float16 with text: aten.mul in model.embed_tokens fails")
    assert "\n  backward pass not run: the float16 loss is not finite\n" in done.out
    assert ", forward only, mode half." in done.out
    assert "| backward pass not run: the float16 loss is not finite |" in (tmp_path / "report.md").read_text()


def test_forward_only_says_no_more_than_that(sound: Path) -> None:
    done = verify(sound, "--no-backward")
    assert done.out.startswith("Sound. Ran forward in float16 with text: no operation overflowed.\n")
    assert ", forward only, mode half." in done.out
    assert "backward" not in done.out


def test_one_scale_that_overflows_is_not_said_to_be_every_one(sound: Path) -> None:
    done = verify(sound, "--loss-scale", "1048576")
    assert done.code == 1, done.err
    assert "are inf or NaN at loss scale 1,048,576, the only one tried; first aten._to_copy" in done.out
    assert "every loss scale" not in done.out
    assert "\n  loss scale 1,048,576 overflows: gradients of model.norm\n" in done.out


def test_one_scale_at_which_gradients_vanish_is_not_sound(sound: Path) -> None:
    done = verify(sound, "--loss-scale", "1e-7", "--fail-on", "warning")
    assert done.code == 1, done.err
    assert done.out.startswith("At risk: 1 warning.")
    assert "vanish at loss scale 1e-07, the only one tried" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss-scale", "1e39"], "--loss-scale 1e39: take one from 2^-64 to 2^64; the loss is float32"),
        (["--loss-scale", "1e-30"], "--loss-scale 1e-30: take one from 2^-64 to 2^64"),
        (["--loss-scale", "8", "--no-backward"], "--loss-scale is about the backward pass, which --no-backward leaves"),
        (["--gradient-checkpointing", "--no-backward"], "--gradient-checkpointing is about the backward pass"),
    ],
)
def test_what_says_nothing_of_this_run_is_refused(sound: Path, words: list[str], message: str) -> None:
    done = verify(sound, *words)
    assert (done.code, message in done.err) == (2, True), done.err


def test_what_is_compared_has_its_name(encoder: Path, tmp_path: Path) -> None:
    """No logits are said of a model that has none."""
    done = verify(encoder, "--against", encoder, "--html", tmp_path / "report.html", "--markdown", tmp_path / "out.md")
    assert done.code == 0, done.err
    assert "\n  last_hidden_state: relative error 0.000" in done.out
    assert "\n  float32 last_hidden_state against the other checkpoint's: relative error 0\n" in done.out
    assert "<dt>last_hidden_state from the reference</dt>" in (tmp_path / "report.html").read_text()
    assert "| `last_hidden_state`: relative error 0.000" in (tmp_path / "out.md").read_text()
    for document in (done.out, (tmp_path / "report.html").read_text(), (tmp_path / "out.md").read_text()):
        assert "logits" not in document
        assert "KL" not in document


def test_another_kind_of_model_is_not_compared_with(sound: Path, seeing: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8)
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    done = verify(sound, "--against", tmp_path / "vit")
    said = f"--against {tmp_path / 'vit'}: a ViTModel takes image, and the Gemma3ForCausalLM of {sound} is given text"
    assert (done.code, said in done.err) == (2, True), done.err
    assert verify(seeing, "--against", seeing, "--modality", "image", "--no-backward").code == 0


def test_without_a_reference_loss_scales_are_said_to_be_judged_by_half(sound: Path, tmp_path: Path) -> None:
    """Whether a gradient is zero for want of range is known beside another run only."""
    page, card = tmp_path / "report.html", tmp_path / "report.md"
    for reference, times in (("none", 1), ("float32", 0)):
        done = verify(sound, "--reference", reference, "--html", page, "--markdown", card)
        for document in (done.out, page.read_text(), card.read_text()):
            assert document.count(", but for gradients that vanish: no reference tells which") == times
