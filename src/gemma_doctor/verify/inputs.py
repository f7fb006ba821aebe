"""What the model is given: texts, a picture and a sound, the same on every machine.

A checkpoint's own tokenizer and processors are used where it has them. Without them the ids are random, and pictures
and sounds are prepared with the numbers that the family's processors have by default.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image
from torch import Tensor

from gemma_doctor.choices import Modality
from gemma_doctor.errors import UsageError
from gemma_doctor.verify.loading import Subject
from gemma_doctor.verify.measures import Request

__all__ = ["Batch", "batch"]

_IGNORED = -100  # the label that transformers leaves out of the loss
_FIRST_WORD = 8  # below it lie padding, beginning and end of text in every vocabulary we know
_RATE = 16_000  # samples a second, of Gemma 3n's audio processor
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_SIDE = 256  # pixels, where neither the checkpoint nor its config says more


@dataclass(frozen=True, slots=True)
class Batch:
    """One input of the model.

    Attributes:
        modality: Its kind.
        arguments: The keyword arguments of the model's forward pass, on the host.
        words: What it is, for the report.
    """

    modality: Modality
    arguments: Mapping[str, Tensor]
    words: str

    def on(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """The arguments on a device, floating-point ones in a dtype."""
        return {
            name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in self.arguments.items()
        }


def batch(subject: Subject, modality: Modality, request: Request) -> Batch:
    """The input of one kind for a model.

    Args:
        subject: The model.
        modality: The kind; one of the model's own.
        request: Its extent.

    Raises:
        UsageError: If a file cannot be used, or the model needs a processor that the checkpoint lacks.
    """
    if "text" not in subject.modalities:
        pixels, words = _pixels(subject, request)
        return Batch("image", {"pixel_values": pixels}, words)
    ids, words = _ids(subject, request)
    extra: dict[str, Tensor] = {}
    token: int | None = None
    if modality == "image":
        token = _token(subject, "image_token_id", "image_token_index")
        extra["pixel_values"], picture = _pixels(subject, request)
        ids, words = _with_tokens(ids, token, _image_tokens(subject)), f"{picture}; {words}"
    elif modality == "audio":
        token = _token(subject, "audio_token_id")
        extra["input_features"], extra["input_features_mask"], sound = _sound(subject, request)
        ids, words = _with_tokens(ids, token, subject.config.audio_soft_tokens_per_image), f"{sound}; {words}"
    labels = torch.where(ids == (-1 if token is None else token), _IGNORED, ids)
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, **extra}
    if subject.config.model_type == "gemma3":
        arguments["token_type_ids"] = (ids == token).long() if token is not None else torch.zeros_like(ids)
    return Batch(modality, arguments, words)


def _ids(subject: Subject, request: Request) -> tuple[Tensor, str]:
    """Token ids, shape (size, length)."""
    extent = f"{request.size} x {request.length} tokens"
    if any((subject.folder / name).exists() for name in _TOKENIZERS):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            subject.folder, local_files_only=True, trust_remote_code=False
        )
        ids = tokenizer(_text(request))["input_ids"]
        rows = [_cut(ids, row * request.length, request.length) for row in range(request.size)]
        return torch.tensor(rows), f"{extent} of {request.text.name if request.text else 'the bundled texts'}"
    if request.text is not None:
        raise UsageError(f"{subject.folder} has no tokenizer, so --text {request.text} cannot become token ids")
    sizes = (getattr(subject.text, name, None) for name in ("vocab_size", "vocab_size_per_layer_input"))
    known = min(size for size in sizes if size)
    special = set(_special({**subject.text.to_dict(), **subject.config.to_dict()}))
    words = torch.tensor([word for word in range(min(_FIRST_WORD, known - 1), known) if word not in special])
    generator = torch.Generator().manual_seed(request.seed)
    picks = torch.randint(len(words), (request.size, request.length), generator=generator)
    return words[picks], f"{extent}, random (the checkpoint has no tokenizer)"


def _special(config: Mapping[str, Any]) -> Iterator[int]:
    """The ids that a configuration gives a meaning; some keys hold several."""
    for key, value in config.items():
        if key.endswith(("_token_id", "_token_index")):
            yield from value if isinstance(value, list) else [value]


def _text(request: Request) -> str:
    if request.text is None:
        return files("gemma_doctor.verify").joinpath("texts.txt").read_text(encoding="utf-8")
    try:
        text = request.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--text {request.text} cannot be read as UTF-8: {error}") from error
    if not text.strip():
        raise UsageError(f"--text {request.text} is empty")
    return text


def _cut(ids: list[int], start: int, length: int) -> list[int]:
    """``length`` ids from ``start`` on, round and round."""
    return [ids[(start + at) % len(ids)] for at in range(length)]


def _token(subject: Subject, *names: str) -> int:
    found = next((value for name in names if (value := getattr(subject.config, name, None)) is not None), None)
    if found is None:
        raise UsageError(f"{subject.folder}: its config names no {names[0]}, so the model cannot be given one")
    return int(found)


def _with_tokens(ids: Tensor, token: int, count: int) -> Tensor:
    """The placeholders of one picture or sound in front of each sequence."""
    return torch.cat([torch.full((len(ids), count), token), ids], dim=1)


def _image_tokens(subject: Subject) -> int:
    for name in ("vision_soft_tokens_per_image", "mm_tokens_per_image", "image_seq_length"):
        if (count := getattr(subject.config, name, None)) is not None:
            return int(count)
    raise UsageError(
        f"{subject.folder}: how many tokens stand for a picture in a {subject.config.model_type} is not known; "
        "leave pictures out with --modality text"
    )


def _pixels(subject: Subject, request: Request) -> tuple[Tensor, str]:
    """Prepared pictures, shape (size, 3, side, side), and what they are."""
    side = request.side or _side(subject)
    picture = _picture(request, side)
    if (subject.folder / "preprocessor_config.json").exists():
        processor = transformers.AutoImageProcessor.from_pretrained(
            subject.folder, local_files_only=True, trust_remote_code=False
        )
        size = {"size": {"height": side, "width": side}} if request.side else {}
        pixels = processor(images=picture, return_tensors="pt", **size)["pixel_values"]
        how = "through the checkpoint's processor"
    else:
        unit = torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1)[None]
        pixels = unit if subject.config.model_type == "gemma3n" else unit * 2 - 1  # SigLIP: mean and deviation 0.5
        how = "from 0 to 1" if subject.config.model_type == "gemma3n" else "from -1 to 1"
    name = request.image.name if request.image else "a generated picture"
    return pixels.repeat(request.size, 1, 1, 1), f"{name}, {pixels.shape[-2]} x {pixels.shape[-1]} px, {how}"


def _side(subject: Subject) -> int:
    vision = getattr(subject.config, "vision_config", subject.config)
    side = getattr(vision, "image_size", None)
    return side if isinstance(side, int) else _SIDE


def _picture(request: Request, side: int) -> Image.Image:
    if request.image is not None:
        try:
            with Image.open(request.image) as picture:
                scaled: Image.Image = picture.convert("RGB").resize((side, side))
                return scaled
        except OSError as error:
            raise UsageError(f"--image {request.image} cannot be read as a picture: {error}") from error
    return Image.fromarray(_scene(side, np.random.default_rng(request.seed)))


def _scene(side: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A sky above a chequered plain, with grain: smooth areas, hard edges, dark and bright, shape (side, side, 3)."""
    y, x = np.mgrid[0:side, 0:side] / side
    sky = np.stack([0.3 + 0.4 * y, 0.5 + 0.3 * y, 0.95 - 0.2 * y], axis=-1)
    tiles = ((np.floor(x * 12) + np.floor(y * 12)) % 2)[..., None] * np.array([0.8, 0.75, 0.6])
    scene = np.where((y > 0.6)[..., None], tiles, sky)  # noqa: PLR2004  # the horizon
    scene += rng.normal(0, 0.02, scene.shape)
    return np.round(255 * scene.clip(0, 1)).astype(np.uint8)


def _sound(subject: Subject, request: Request) -> tuple[Tensor, Tensor, str]:
    """Log-mel features, shape (size, frames, bins); which frames hold sound; and what it is."""
    prepare = transformers.Gemma3nAudioFeatureExtractor(feature_size=subject.config.audio_config.input_feat_size)
    if (subject.folder / "preprocessor_config.json").exists():
        prepare = transformers.AutoFeatureExtractor.from_pretrained(
            subject.folder, local_files_only=True, trust_remote_code=False
        )
    made = prepare([_waveform(request)] * request.size, return_tensors="pt")
    name = request.audio.name if request.audio else "a generated sound"
    features: Tensor = made["input_features"]
    return features, made["input_features_mask"].bool(), f"{name}, {features.shape[1]} frames"


def _waveform(request: Request) -> npt.NDArray[np.float32]:
    """Samples from -1 to 1, 16 kHz: the user's, or two seconds of a rising tone with noise and a pause."""
    if request.audio is not None:
        return _read_wave(request.audio)
    rng = np.random.default_rng(request.seed)
    seconds = np.arange(2 * _RATE) / _RATE
    tone = 0.5 * np.sin(2 * np.pi * (200 * seconds + 400 * seconds**2)) * (np.abs(seconds - 1) > 0.1)  # noqa: PLR2004
    return (tone + rng.normal(0, 0.01, seconds.size)).astype(np.float32)


def _read_wave(path: Path) -> npt.NDArray[np.float32]:
    try:
        with wave.open(str(path), "rb") as stream:
            kind = (stream.getframerate(), stream.getsampwidth())
            channels, data = stream.getnchannels(), stream.readframes(stream.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise UsageError(f"--audio {path} cannot be read as WAV: {error}") from error
    if kind != (_RATE, 2):
        raise UsageError(f"--audio {path}: {kind[0]:,} Hz, {8 * kind[1]} bits; it must be 16,000 Hz, 16 bits")
    samples = np.frombuffer(data, np.int16).astype(np.float32) / 32768
    mono: npt.NDArray[np.float32] = samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return mono
