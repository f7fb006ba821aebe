"""Inputs are the same each time, fit the model, and say what they are; what cannot be used is a clear error."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models  # noqa: F401  # makes timm importable beside a torch for CPUs
import torch
from checkpoints import (
    healthy,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    write,
)
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.choices import Modality
from gemma_doctor.errors import UsageError
from gemma_doctor.verify.inputs import batch, check_used
from gemma_doctor.verify.loading import Subject, read_config
from gemma_doctor.verify.measures import Request
from gemma_doctor.verify.media import picture, waveform


def subject(folder: Path, config: dict[str, Any]) -> Subject:
    return read_config(open_checkpoint(write(folder / "checkpoint", healthy(config), config)))


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject(tmp_path_factory.mktemp("gemma3n"), tiny_gemma3n_config())


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_inputs_are_deterministic_and_in_range(multimodal: Subject, modality: Modality) -> None:
    request = Request(length=8, size=2, side=32)
    first, second = (batch(multimodal, modality, request) for _ in range(2))
    assert first.words == second.words
    assert all(torch.equal(first.arguments[name], second.arguments[name]) for name in first.arguments)
    ids, labels = first.arguments["input_ids"], first.arguments["labels"]
    special = {65, 69}
    assert int(ids.max()) < 72
    assert set(ids[labels == -100].tolist()) == {"text": set(), "image": {65}, "audio": {69}}[modality]
    assert special.isdisjoint(ids[labels != -100].tolist())
    assert (labels[:, -8:] != -100).all()  # pictures and sounds come before the words
    assert {len(part) for part in first.arguments.values()} == {2}


def test_random_words_have_no_meaning_of_their_own(tmp_path: Path, multimodal: Subject) -> None:
    """No id of either configuration's special tokens, nor one that some embedding of the model does not have."""
    config = {**tiny_gemma3_multimodal_config(), "image_token_index": 20}
    config["text_config"] = {**config["text_config"], "eos_token_id": [11, 12]}
    words = batch(subject(tmp_path, config), "text", Request(length=2000)).arguments["input_ids"]
    assert set(words.flatten().tolist()) == set(range(8, 64)) - {11, 12, 20}
    fewer = batch(multimodal, "text", Request(length=2000)).arguments["input_ids"]  # of 72, 64 have one per layer
    assert set(fewer.flatten().tolist()) == set(range(8, 64))


def test_pictures_are_prepared_as_the_family_does(tmp_path: Path, multimodal: Subject) -> None:
    ours = batch(multimodal, "image", Request(length=4, side=32)).arguments["pixel_values"]
    assert ours.shape == (1, 3, 32, 32)
    assert (0 <= float(ours.min()) < 0.2, 0.8 < float(ours.max()) <= 1) == (True, True)
    siglip = batch(subject(tmp_path, tiny_gemma3_multimodal_config()), "image", Request(length=5))
    pixels = siglip.arguments["pixel_values"]
    assert pixels.shape == (1, 3, 28, 28)
    assert -1 <= float(pixels.min()) < -0.6
    assert int(siglip.arguments["token_type_ids"].sum()) == 4
    words = batch(subject(tmp_path, tiny_gemma3_multimodal_config()), "text", Request(length=4)).arguments
    assert words["token_type_ids"].tolist() == [[0] * 4]


def test_the_users_own_picture_and_sound_are_used(tmp_path: Path, multimodal: Subject) -> None:
    Image.new("RGB", (7, 5), (255, 0, 0)).save(tmp_path / "red.png")
    red = batch(multimodal, "image", Request(length=4, side=32, image=tmp_path / "red.png"))
    assert red.words.startswith("red.png, 32 x 32 px")
    assert red.arguments["pixel_values"].mean(dim=(0, 2, 3)).tolist() == [1, 0, 0]
    with wave.open(str(tmp_path / "hum.wav"), "wb") as stream:
        stream.setparams((2, 2, 16_000, 0, "NONE", ""))
        stream.writeframes(np.zeros(32_000, np.int16).tobytes())
    hum = batch(multimodal, "audio", Request(length=4, audio=tmp_path / "hum.wav"))
    assert hum.words.startswith("hum.wav, ")
    features, mask = hum.arguments["input_features"], hum.arguments["input_features_mask"]
    assert (float(features[mask].std()), features.shape[-1]) == (0, 16)  # the bins that the model takes
    assert mask.dtype == torch.bool


@pytest.mark.parametrize(
    ("modality", "message"),
    [
        ("image", "--image .*/file cannot be read as a picture"),
        ("audio", "--audio .*/file cannot be read as WAV"),
        ("text", "has no tokenizer, so --text"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, multimodal: Subject, modality: Modality, message: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"words")
    requests = {"text": Request(text=file), "image": Request(image=file), "audio": Request(audio=file)}
    with pytest.raises(UsageError, match=message):
        batch(multimodal, modality, requests[modality])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"RIFF", "ends in the middle of its header"),
        (b"ID3 of an MP3 file, which is no WAV", "file does not start with RIFF id; ffmpeg -i '.*/a song.wav' -ac 1"),
        (None, "No such file or directory$"),
    ],
)
def test_what_is_no_sound_is_told_with_the_next_step(
    tmp_path: Path, multimodal: Subject, content: bytes | None, message: str
) -> None:
    file = tmp_path / "a song.wav"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        batch(multimodal, "audio", Request(audio=file))


def test_a_sound_that_was_cut_off_within_a_sample_is_heard_up_to_there(tmp_path: Path, multimodal: Subject) -> None:
    file = recording(tmp_path / "cut.wav", 16_000)
    file.write_bytes(file.read_bytes()[:-1])
    assert batch(multimodal, "audio", Request(length=4, audio=file)).words.startswith("cut.wav, ")
    with pytest.raises(UsageError, match="holds 50 samples, too few for one frame of sound"):
        batch(multimodal, "audio", Request(audio=recording(tmp_path / "short.wav", 50)))


@pytest.mark.parametrize("channels", [1, 2])
def test_samples_lie_between_minus_one_and_one_and_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    """Of a recording that was cut off within a frame, too."""
    file = tmp_path / "loud.wav"
    with wave.open(str(file), "wb") as stream:
        stream.setparams((channels, 2, 16_000, 0, "NONE", ""))
        stream.writeframes(np.array([[-32768, 0], [16384, 8192], [1, 1]], np.int16)[:, :channels].tobytes())
    file.write_bytes(file.read_bytes()[:-2])
    expected = {1: [-1.0, 0.5], 2: [-0.5, 0.375]}[channels]
    assert waveform(Request(audio=file)).tolist() == expected


def test_the_generated_sound_has_a_pause() -> None:
    loud = np.abs(waveform(Request())).reshape(20, -1).max(axis=1) > 0.1  # in tenths of a second
    assert loud.tolist() == [True] * 9 + [False] * 2 + [True] * 9


@pytest.mark.parametrize(
    ("width", "rate", "has"), [(2, 44_100, "44,100 Hz, 16 bits"), (1, 16_000, "16,000 Hz, 8 bits")]
)
def test_a_sound_of_another_kind_is_refused(tmp_path: Path, width: int, rate: int, has: str) -> None:
    with wave.open(str(tmp_path / "cd.wav"), "wb") as stream:
        stream.setparams((1, width, rate, 0, "NONE", ""))
        stream.writeframes(bytes(100))
    with pytest.raises(UsageError, match=f"{has}; it must be 16,000 Hz"):
        waveform(Request(audio=tmp_path / "cd.wav"))


def recording(path: Path, samples: int) -> Path:
    with wave.open(str(path), "wb") as stream:
        stream.setparams((1, 2, 16_000, 0, "NONE", ""))
        stream.writeframes(np.zeros(samples, np.int16).tobytes())
    return path


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_a_picture_of_any_kind_has_three_channels(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (7, 5)).save(tmp_path / "own.png")
    made = picture(Request(image=tmp_path / "own.png"), 32)
    assert (made.mode, made.size) == ("RGB", (32, 32))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"P6\n7 x\n", "invalid literal"), (b"P5 70 50 255\n" + bytes(3500), "exceeds limit of 2")],
)
def test_a_picture_that_is_broken_or_a_bomb_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    (tmp_path / "own.ppm").write_bytes(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UsageError, match=rf"own\.ppm cannot be read as a picture: .*{message}"):
        picture(Request(image=tmp_path / "own.ppm"), 32)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_picture_is_told(tmp_path: Path, multimodal: Subject, damage: str) -> None:
    file = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(file)
    content = bytearray(file.read_bytes())
    file.write_bytes(content[:5000] if damage == "cut" else content[:60] + b"\xff\x00" * 20 + content[100:])
    with pytest.raises(UsageError, match=r"--image .*/picture\.png cannot be read as a picture: "):
        batch(multimodal, "image", Request(image=file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("caf\u00e9".encode("latin-1"), "is not UTF-8: unexpected end of data at byte 3"),
        (b" \n", "is empty"),
        (None, "cannot be read: No such file or directory$"),
    ],
)
def test_a_text_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None, message: str) -> None:
    found = with_tokenizer(subject(tmp_path, tiny_gemma3_config()), "<unk>", "own")
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        batch(found, "text", Request(text=file))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokenizer.json", "cannot load its tokenizer.json: .*Mend the file, or move it out of the folder"),
        ("tokenizer.model", "cannot load its tokenizer.model: .*; it takes pip install sentencepiece"),
    ],
)
def test_a_broken_tokenizer_is_told(tmp_path: Path, name: str, message: str) -> None:
    found = subject(tmp_path, tiny_gemma3_config())
    (found.folder / name).write_text('{"version": ')
    with pytest.raises(UsageError, match=message):
        batch(found, "text", Request())


def test_a_broken_processor_is_told(tmp_path: Path) -> None:
    found = subject(tmp_path, tiny_gemma3_multimodal_config())
    (found.folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(UsageError, match=r"cannot load its preprocessor_config\.json: "):
        batch(found, "image", Request(length=4))


@pytest.mark.parametrize("more", [0, 1])
def test_the_tokenizer_of_a_larger_model_is_told(tmp_path: Path, more: int) -> None:
    """Its ids would lie behind the end of the embedding, which has 64 rows."""
    found = with_tokenizer(subject(tmp_path, tiny_gemma3_config()), "<unk>", *map(str, range(62 + more)), "water")
    if more:
        with pytest.raises(UsageError, match=r"its tokenizer gives the id 64, and the model knows 64 \(vocab_size"):
            batch(found, "text", Request())
    else:
        assert int(batch(found, "text", Request()).arguments["input_ids"].max()) == 63


@pytest.mark.parametrize(
    ("request_", "modalities", "message"),
    [
        (Request(image=Path("p.png")), ("text",), "--image p.png would not be used: --modality leaves image out"),
        (Request(audio=Path("a.wav")), ("text", "image"), "--audio a.wav would not be used: --modality leaves audio"),
    ],
)
def test_a_file_that_no_run_is_given_is_refused(
    multimodal: Subject, request_: Request, modalities: tuple[Modality, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_used(multimodal, modalities, request_)
    check_used(multimodal, ("image", "audio"), Request(text=Path("t.txt"), image=Path("p.png"), audio=Path("a.wav")))


def with_tokenizer(found: Subject, *words: str) -> Subject:
    """The same with a tokenizer that knows these words, from the id 0 on; the first stands for all others."""
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=words[0]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(found.folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": words[0]}
    (found.folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return found


def test_the_checkpoints_tokenizer_reads_the_bundled_texts_or_the_users(tmp_path: Path) -> None:
    found = with_tokenizer(subject(tmp_path, tiny_gemma3_config()), "<unk>", "water", "wind", "own")
    bundled = batch(found, "text", Request(length=40, size=2))
    assert bundled.words == "2 x 40 tokens of the bundled texts"
    assert {1, 2} <= set(bundled.arguments["input_ids"].flatten().tolist())
    (tmp_path / "own.txt").write_text("own water\n")
    own = batch(found, "text", Request(length=5, text=tmp_path / "own.txt"))
    assert own.arguments["input_ids"].tolist() == [[3, 1, 3, 1, 3]]
    assert own.words == "1 x 5 tokens of own.txt, whose 2 are repeated"
    (tmp_path / "own.txt").write_text("own water own wind")
    cut = batch(found, "text", Request(length=3, text=tmp_path / "own.txt"))
    assert cut.words == "1 x 3 tokens of own.txt, which has 4"
    rows = batch(found, "text", Request(length=2, size=2, text=tmp_path / "own.txt"))
    assert rows.arguments["input_ids"].tolist() == [[3, 1], [3, 2]]
    assert rows.words == "2 x 2 tokens of own.txt"
