"""What a checkpoint prepares texts, pictures and sounds with: its own tokenizer and processors, where it has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from gemma_doctor.errors import UsageError
from gemma_doctor.verify.loading import Subject
from gemma_doctor.verify.measures import Request
from gemma_doctor.verify.media import RATE, picture, waveform
from gemma_doctor.verify.needs import first_line

__all__ = ["own", "pixels", "sound"]

_WHOLE = "processor_config.json"  # since transformers 5 a processor of several kinds of input has its parts inside
_PART = "preprocessor_config.json"  # one of pictures, one of sounds, or both mixed, as Gemma 3n was published
_SAMPLED = "sampling_rate"  # whatever is of sounds names it
_SIDE = 256  # pixels, where neither the checkpoint nor its config says more


def pixels(subject: Subject, request: Request) -> tuple[Tensor, str]:
    """Prepared pictures, shape (size, 3, height, width), and what they are.

    The checkpoint's own processor is given the user's picture as it is, and scales it itself. A size of the user's
    takes the place of its scaling and cropping; its mean and deviation stay.

    Args:
        subject: The model.
        request: The user's picture and size, if any; the seed.

    Raises:
        UsageError: If the picture cannot be used, or the processor cannot be loaded or does not take it.
    """
    stored = tuple(_stored(subject.folder, sounds=False))
    shown = picture(request, request.side or _side(subject), scaled=not stored or request.side is not None)
    if stored:
        processor = own(subject, transformers.AutoImageProcessor, *stored)
        as_it_is = {"do_resize": False, "do_center_crop": False} if request.side else {}
        (made,) = _prepared(subject, processor, ("pixel_values",), shown, **as_it_is)
        how = "through the checkpoint's processor"
    else:
        unit = torch.from_numpy(np.asarray(shown, np.float32) / 255).permute(2, 0, 1)[None]
        made = unit if subject.config.model_type == "gemma3n" else unit * 2 - 1  # SigLIP: mean and deviation 0.5
        how = "from 0 to 1" if subject.config.model_type == "gemma3n" else "from -1 to 1"
    name = request.image.name if request.image else "a generated picture"
    return made.repeat(request.size, 1, 1, 1), f"{name}, {made.shape[-2]} x {made.shape[-1]} px, {how}"


def sound(subject: Subject, request: Request) -> tuple[Tensor, Tensor, str]:
    """Log-mel features, shape (size, frames, bins); which frames hold sound; and what it is.

    Args:
        subject: The model.
        request: The user's sound, if any; the seed.

    Raises:
        UsageError: If the sound cannot be used, or the processor cannot be loaded or does not take it.
    """
    prepare = transformers.Gemma3nAudioFeatureExtractor(feature_size=subject.config.audio_config.input_feat_size)
    stored = tuple(_stored(subject.folder, sounds=True))
    if stored:
        prepare = own(subject, transformers.AutoFeatureExtractor, *stored)
    samples = waveform(request)
    names = ("input_features", "input_features_mask")
    features, mask = _prepared(subject, prepare, names, [samples] * request.size)
    if not features.shape[1]:
        raise UsageError(f"--audio {request.audio} holds {samples.size:,} samples, too few for one frame of sound")
    name = request.audio.name if request.audio else "a generated sound"
    how = ", through the checkpoint's processor" if stored else ""
    heard = f"{features.shape[1]:,} frames{_share(features.shape[1] * prepare.hop_length, samples.size)}"
    return features, mask.bool(), f"{name}, {heard}{how}"


def _share(used: int, there: int) -> str:
    """That a processor cuts off a long sound, as Gemma 3n's does after 30 seconds; in samples."""
    return f", the first {used / RATE:.3g} of {there / RATE:.3g} seconds" if there - used > RATE else ""


def _side(subject: Subject) -> int:
    vision = getattr(subject.config, "vision_config", subject.config)
    side = getattr(vision, "image_size", None)
    return side if isinstance(side, int) else _SIDE


def _stored(folder: Path, *, sounds: bool) -> Iterator[str]:
    """The files in which a checkpoint keeps its own processor of pictures, or of sounds.

    A file that is no JSON is among them: transformers is to say what is wrong with it.
    """
    part = "feature_extractor" if sounds else "image_processor"
    whole, mixed = (_document(folder / name) for name in (_WHOLE, _PART))
    if whole is None or part in whole:
        yield _WHOLE
    if mixed is None or (mixed and (_SAMPLED in mixed if sounds else _pictures(mixed))):
        yield _PART


def _pictures(document: dict[str, Any]) -> bool:
    return _SAMPLED not in document or "image_processor_type" in document


def _document(file: Path) -> dict[str, Any] | None:
    """What a file says; nothing where there is none, None where it cannot be read."""
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _prepared(
    subject: Subject,
    prepare: Any,  # noqa: ANN401  # a class of transformers
    names: tuple[str, ...],
    what: object,
    **how: bool,
) -> list[Tensor]:
    """What a processor makes of a picture or of sounds, by its names.

    Raises:
        UsageError: If it does not take them, or makes something else.
    """
    try:
        made = prepare(what, return_tensors="pt", **how)
        return [made[name] for name in names]
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise UsageError(
            f"{subject.folder}: its {type(prepare).__name__} cannot prepare the input: {first_line(error)}. Mend its "
            "configuration, or move it out of the folder to do without it"
        ) from error


def own(subject: Subject, auto: Any, *files: str) -> Any:  # noqa: ANN401  # classes of transformers
    """What the checkpoint prepares inputs with: its tokenizer or its processor.

    Args:
        subject: The checkpoint.
        auto: The class of transformers that loads it.
        files: Where it may be stored.

    Raises:
        UsageError: If it cannot be loaded.
    """
    try:
        return auto.from_pretrained(subject.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers package raises no class of its own
        there = [name for name in files if (subject.folder / name).exists()]
        needs = "; it takes pip install sentencepiece" if there == ["tokenizer.model"] else ""
        raise UsageError(
            f"{subject.folder}: transformers cannot load its {', '.join(there)}: {first_line(error)}{needs}. Mend the "
            "file, or move it out of the folder to do without it"
        ) from error
