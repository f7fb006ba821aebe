"""A checkpoint's own processors: found in every layout, given what the user gave, with their own statistics."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models  # noqa: F401  # makes timm importable beside a torch for CPUs
import torch
import transformers
from checkpoints import healthy, tiny_gemma3_multimodal_config, tiny_gemma3n_config, write
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from gemma_doctor import doctor
from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.errors import UsageError
from gemma_doctor.verify.inputs import batch
from gemma_doctor.verify.loading import Subject, read_config
from gemma_doctor.verify.measures import Measures, Request
from gemma_doctor.verify.media import picture

MEAN, DEVIATION = (0.2, 0.3, 0.4), (0.1, 0.2, 0.4)
OWN = "through the checkpoint's processor"
STATISTICS = {"image_mean": MEAN, "image_std": DEVIATION}
BINS = {"feature_size": 16, "per_bin_mean": [0.5] * 16, "per_bin_stddev": [2.0] * 16}
PARTS = {
    "gemma3": ["boi_token", "image_token", "eoi_token"],
    "gemma3n": ["boi_token", "image_token", "eoi_token", "boa_token", "audio_token", "eoa_token"],
}
LAYOUTS = ["whole", "mixed"]


def tokenizer(parts: list[str]) -> Any:  # noqa: ANN401  # a class of transformers
    """One that knows two words, and the names of a processor's placeholders."""
    known = Tokenizer(WordLevel({"<unk>": 0, "water": 1}, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=known, unk_token="<unk>", extra_special_tokens={part: f"<{part}>" for part in parts}
    )


def gemma3(folder: Path, layout: str) -> Subject:
    """A Gemma 3 of pictures of 28 px with a processor of its own.

    Args:
        folder: Where it is written.
        layout: ``whole``, as transformers 5 saves it, or ``mixed``, as checkpoints were published.
    """
    config = tiny_gemma3_multimodal_config()
    root = write(folder / "checkpoint", healthy(config), config)
    images = transformers.Gemma3ImageProcessor(size={"height": 28, "width": 28}, **STATISTICS)
    if layout == "mixed":
        images.save_pretrained(root)
    else:
        whole = transformers.Gemma3Processor(images, tokenizer(PARTS["gemma3"]), image_seq_length=4)
        whole.save_pretrained(root)
    return read_config(open_checkpoint(root))


def gemma3n(folder: Path, layout: str) -> Subject:
    """A Gemma 3n with processors of its own for pictures of 64 px and for sounds of 16 bins."""
    config = tiny_gemma3n_config()
    root = write(folder / "checkpoint", healthy(config), config)
    images = transformers.SiglipImageProcessor(size={"height": 64, "width": 64}, **STATISTICS)
    sounds = transformers.Gemma3nAudioFeatureExtractor(**BINS)
    if layout == "mixed":
        documents = []
        for part in (sounds, images):
            part.save_pretrained(root)
            documents.append(json.loads((root / "preprocessor_config.json").read_text()))
        (root / "preprocessor_config.json").write_text(json.dumps({**documents[0], **documents[1]}))
    else:
        whole = transformers.Gemma3nProcessor(
            sounds, images, tokenizer(PARTS["gemma3n"]), audio_seq_length=188, image_seq_length=256
        )
        whole.save_pretrained(root)
    return read_config(open_checkpoint(root))


@pytest.fixture
def red(tmp_path: Path) -> Path:
    """A picture that is red all over, wider than high."""
    Image.new("RGB", (70, 50), (255, 0, 0)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def prepared(red: tuple[float, float, float]) -> list[float]:
    """What the processors above make of a colour, by hand."""
    return [(value - mean) / deviation for value, mean, deviation in zip(red, MEAN, DEVIATION, strict=True)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("build", "side"), [(gemma3, 28), (gemma3n, 64)])
def test_pictures_get_the_checkpoints_mean_and_deviation(
    tmp_path: Path, red: Path, layout: str, build: Callable[[Path, str], Subject], side: int
) -> None:
    made = batch(build(tmp_path, layout), "image", Request(length=4, image=red))
    assert made.words.startswith(f"red.png, {side} x {side} px, {OWN}; ")
    means = made.arguments["pixel_values"].mean(dim=(0, 2, 3)).tolist()
    assert means == pytest.approx(prepared((1, 0, 0)), abs=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_size_of_the_users_keeps_the_checkpoints_mean_and_deviation(tmp_path: Path, red: Path, layout: str) -> None:
    made = batch(gemma3n(tmp_path, layout), "image", Request(length=4, size=2, image=red, side=96))
    assert made.words.startswith(f"red.png, 96 x 96 px, {OWN}; ")
    assert made.arguments["pixel_values"].shape == (2, 3, 96, 96)
    means = made.arguments["pixel_values"].mean(dim=(0, 2, 3)).tolist()
    assert means == pytest.approx(prepared((1, 0, 0)), abs=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sounds_get_the_checkpoints_mean_and_deviation(tmp_path: Path, layout: str) -> None:
    made = batch(gemma3n(tmp_path, layout), "audio", Request(length=4))
    plain = transformers.Gemma3nAudioFeatureExtractor(feature_size=16)
    (tmp_path / "none").mkdir()
    config = tiny_gemma3n_config()
    without = read_config(open_checkpoint(write(tmp_path / "none" / "checkpoint", healthy(config), config)))
    beside = batch(without, "audio", Request(length=4)).arguments["input_features"]
    assert f", {OWN}; " in made.words
    assert plain.feature_size == beside.shape[-1]
    assert torch.allclose(made.arguments["input_features"], (beside - 0.5) / 2, atol=1e-5)


def test_a_processor_of_pictures_alone_is_not_asked_for_sounds(tmp_path: Path) -> None:
    """Transformers would make one of its class, for 128 bins where the model has 16."""
    found = gemma3n(tmp_path, "mixed")
    transformers.SiglipImageProcessor(size={"height": 64, "width": 64}).save_pretrained(found.folder)
    made = batch(found, "audio", Request(length=4))
    assert (made.arguments["input_features"].shape[-1], OWN in made.words) == (16, False)


def test_a_processor_of_sounds_alone_is_not_asked_for_pictures(tmp_path: Path) -> None:
    found = gemma3n(tmp_path, "mixed")
    transformers.Gemma3nAudioFeatureExtractor(**BINS).save_pretrained(found.folder)
    made = batch(found, "image", Request(length=4))
    assert "from 0 to 1" in made.words


@pytest.mark.parametrize("side", [None, 96, 384])
def test_a_processor_that_scales_the_shorter_edge_takes_a_size(tmp_path: Path, red: Path, side: int | None) -> None:
    config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16], depths=[1], num_labels=5)
    torch.manual_seed(0)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path / "resnet")
    measures = Measures(backward=False, reference="none", request=Request(image=red, side=side))
    (run,) = doctor.verify(tmp_path / "resnet", measures, device="cpu").verification.runs  # type: ignore[union-attr]
    assert run.inputs == f"red.png, {side or 64} x {side or 64} px, {OWN}"


def test_what_a_processor_does_not_take_is_told(tmp_path: Path, red: Path) -> None:
    found = gemma3(tmp_path, "mixed")
    file = found.folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "size": {"longest_edge": 28}}))
    with pytest.raises(UsageError, match=r"its Gemma3ImageProcessor cannot prepare the input: .*Mend"):
        batch(found, "image", Request(length=4, image=red))


def test_the_users_own_picture_is_scaled_once(tmp_path: Path) -> None:
    """By the checkpoint's processor, and not before: a fine chequerboard that is scaled twice is another picture."""
    tiles = (np.indices((100, 60)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(tiles).convert("RGB").save(tmp_path / "tiles.png")
    found = gemma3(tmp_path, "mixed")
    made = batch(found, "image", Request(length=4, image=tmp_path / "tiles.png")).arguments["pixel_values"]
    processor = transformers.AutoImageProcessor.from_pretrained(found.folder)
    direct = processor(Image.open(tmp_path / "tiles.png"), return_tensors="pt")["pixel_values"]
    assert torch.equal(made, direct)


def test_sixteen_bits_of_grey_are_scaled_and_not_cut(tmp_path: Path) -> None:
    """Pillow's own conversion makes white of everything from 255 on."""
    steps = np.array([[0, 256 * 64, 256 * 128, 65535]], np.uint16)
    Image.fromarray(steps.repeat(4, axis=0)).save(tmp_path / "grey.png")
    made = np.asarray(picture(Request(image=tmp_path / "grey.png"), 4, scaled=False))
    assert made[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_a_picture_without_a_range_is_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "depth.tiff")
    with pytest.raises(UsageError, match=r"32 bits have no range that says what is white; save it as an 8-bit PNG$"):
        picture(Request(image=tmp_path / "depth.tiff"), 4)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    """As transformers' own load_image does."""
    shot = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))
    turned = shot.getexif()
    turned[0x112] = 6  # the camera's right is below
    shot.save(tmp_path / "shot.png", exif=turned)
    made = np.asarray(picture(Request(image=tmp_path / "shot.png"), 2, scaled=False))
    assert made.tolist() == [[[255, 0, 0]], [[0, 0, 255]]]


def test_a_sound_that_is_cut_off_says_so(tmp_path: Path) -> None:
    config = tiny_gemma3n_config()
    found = read_config(open_checkpoint(write(tmp_path / "checkpoint", healthy(config), config)))
    for seconds, said in ((40, ", the first 30 of 40 seconds; "), (20, " frames; ")):
        with wave.open(str(tmp_path / "long.wav"), "wb") as stream:
            stream.setparams((1, 2, 16_000, 0, "NONE", ""))
            stream.writeframes(bytes(2 * 16_000 * seconds))
        assert said in batch(found, "audio", Request(length=4, audio=tmp_path / "long.wav")).words


def test_a_mark_of_byte_order_is_no_text(tmp_path: Path) -> None:
    found = gemma3(tmp_path, "mixed")
    tokenizer([]).save_pretrained(found.folder)
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfwater")
    made = batch(found, "text", Request(length=2, text=tmp_path / "text.txt"))
    assert made.arguments["input_ids"].tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(length=4, side=56), r"Its config names pictures of 28 px: leave out --image-size$"),
        (Request(length=4, side=28), None),
    ],
)
def test_pictures_that_the_model_was_not_made_for_are_told(
    tmp_path: Path, request_: Request, message: str | None
) -> None:
    config = tiny_gemma3_multimodal_config()
    root = write(tmp_path / "checkpoint", healthy(config), config)
    measures = Measures(backward=False, reference="none", modalities=("image",), request=request_)
    if message is None:
        assert doctor.verify(root, measures, device="cpu").complete
        return
    with pytest.raises(UsageError, match=message):
        doctor.verify(root, measures, device="cpu")


def test_texts_that_cannot_be_joined_to_a_batch_are_told(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=64, num_labels=3)
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    with pytest.raises(UsageError, match=r"Its config names no pad_token_id: .* or leave out --batch$"):
        doctor.verify(tmp_path / "classifier", Measures(request=Request(length=4, size=2)), device="cpu")
