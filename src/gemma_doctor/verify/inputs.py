"""What the model is given: texts, a picture and a sound, the same on every machine.

A checkpoint's own tokenizer and processors are used where it has them. Without them the ids are random, and pictures
and sounds are prepared with the numbers that the family's processors have by default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from gemma_doctor.choices import Modality
from gemma_doctor.errors import UsageError
from gemma_doctor.verify.loading import Subject
from gemma_doctor.verify.measures import Request
from gemma_doctor.verify.media import why_unread
from gemma_doctor.verify.preparing import own, pixels, sound

__all__ = ["Batch", "batch", "check_used"]

_IGNORED = -100  # the label that transformers leaves out of the loss
_CLASSIFYING = ("ForSequenceClassification", "ForTokenClassification")  # their labels are no tokens
_FIRST_WORD = 8  # below it lie padding, beginning and end of text in every vocabulary we know
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


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
        shown, words = pixels(subject, request)
        return Batch("image", {"pixel_values": shown}, words)
    ids, words = _ids(subject, request)
    extra: dict[str, Tensor] = {}
    token: int | None = None
    if modality == "image":
        token = _token(subject, "image_token_id", "image_token_index")
        extra["pixel_values"], picture = pixels(subject, request)
        ids, words = _with_tokens(ids, token, _image_tokens(subject)), f"{picture}; {words}"
    elif modality == "audio":
        token = _token(subject, "audio_token_id")
        extra["input_features"], extra["input_features_mask"], heard = sound(subject, request)
        ids, words = _with_tokens(ids, token, subject.config.audio_soft_tokens_per_image), f"{heard}; {words}"
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra}
    if not subject.build.__name__.endswith(_CLASSIFYING):
        arguments["labels"] = torch.where(ids == (-1 if token is None else token), _IGNORED, ids)
    if subject.config.model_type == "gemma3":
        arguments["token_type_ids"] = (ids == token).long() if token is not None else torch.zeros_like(ids)
    return Batch(modality, arguments, words)


def check_used(subject: Subject, modalities: Sequence[Modality], request: Request) -> None:
    """Refuse a file of the user's that no run would be given, before anything is run.

    Args:
        subject: The model.
        modalities: The kinds of input that it will be given.
        request: What the user gave.

    Raises:
        UsageError: If there is such a file.
    """
    used = {*modalities, *(("text",) if "text" in subject.modalities else ())}  # pictures and sounds come with words
    given: tuple[tuple[Modality, Path | None], ...] = (
        ("text", request.text),
        ("image", request.image),
        ("audio", request.audio),
    )
    for modality, file in given:
        if file is not None and modality not in used:
            takes = f"a {subject.build.__name__} takes {', '.join(subject.modalities)}"
            why = f"{takes} only" if modality not in subject.modalities else f"--modality leaves {modality} out"
            raise UsageError(f"--{modality} {file} would not be used: {why}")


def _ids(subject: Subject, request: Request) -> tuple[Tensor, str]:
    """Token ids, shape (size, length)."""
    extent = f"{request.size} x {request.length} tokens"
    if any((subject.folder / name).exists() for name in _TOKENIZERS):
        ids = _tokens(subject, request)
        rows = [_cut(ids, row * request.length, request.length) for row in range(request.size)]
        return torch.tensor(rows), f"{extent} of {_whose(request, len(ids))}"
    if request.text is not None:
        raise UsageError(
            f"{subject.folder} has no tokenizer, so --text {request.text} cannot become token ids: copy the tokenizer "
            "of its model into the folder, or leave out --text for random ids"
        )
    sizes = (getattr(subject.text, name, None) for name in ("vocab_size", "vocab_size_per_layer_input"))
    known = min(size for size in sizes if size)
    special = set(_special({**subject.text.to_dict(), **subject.config.to_dict()}))
    words = torch.tensor([word for word in range(min(_FIRST_WORD, known - 1), known) if word not in special])
    generator = torch.Generator().manual_seed(request.seed)
    picks = torch.randint(len(words), (request.size, request.length), generator=generator)
    return words[picks], f"{extent}, random (the checkpoint has no tokenizer)"


def _tokens(subject: Subject, request: Request) -> list[int]:
    """The ids of the text, by the checkpoint's own tokenizer."""
    ids: list[int] = own(subject, transformers.AutoTokenizer, *_TOKENIZERS)(_text(request))["input_ids"]
    if not ids:
        raise UsageError(f"--text {request.text}: the checkpoint's tokenizer makes no token of it")
    known = getattr(subject.text, "vocab_size", None)
    if known and max(ids) >= known:
        raise UsageError(
            f"{subject.folder}: its tokenizer gives the id {max(ids):,}, and the model knows {known:,} (vocab_size of "
            "config.json): the two are not of the same model"
        )
    return ids


def _whose(request: Request, there: int) -> str:
    """Whose tokens they are, and whether a text of ``there`` tokens is cut or repeated for them."""
    wanted, name = request.size * request.length, "the bundled texts" if request.text is None else request.text.name
    if there < wanted:
        return f"{name}, whose {there:,} are repeated"
    return name if request.text is None or there == wanted else f"{name}, which has {there:,}"


def _special(config: Mapping[str, Any]) -> Iterator[int]:
    """The ids that a configuration gives a meaning; some keys hold several."""
    for key, value in config.items():
        if key.endswith(("_token_id", "_token_index")):
            yield from value if isinstance(value, list) else [value]


def _text(request: Request) -> str:
    if request.text is None:
        return files("gemma_doctor.verify").joinpath("texts.txt").read_text(encoding="utf-8")
    try:
        text = request.text.read_text(encoding="utf-8-sig")  # Windows writes a mark before it, which is no text
    except UnicodeDecodeError as error:
        raise UsageError(f"--text {request.text} is not UTF-8: {error.reason} at byte {error.start:,}") from error
    except OSError as error:
        raise UsageError(f"--text {request.text} cannot be read: {why_unread(error)}") from error
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
    for name in ("vision_soft_tokens_per_image", "mm_tokens_per_image", "image_seq_length", "num_image_tokens"):
        for config in (subject.config, subject.text):  # PaliGemma has it there
            if (count := getattr(config, name, None)) is not None:
                return int(count)
    raise UsageError(
        f"{subject.folder}: how many tokens stand for a picture in a {subject.config.model_type} is not known; "
        "leave pictures out with --modality text"
    )
