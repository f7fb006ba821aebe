"""Pictures and sounds: the user's own files, or generated, the same on every machine."""

from __future__ import annotations

import wave
from pathlib import Path
from shlex import quote

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from gemma_doctor.errors import UsageError
from gemma_doctor.verify.measures import Request
from gemma_doctor.verify.needs import first_line

__all__ = ["RATE", "picture", "waveform", "why_unread"]

RATE = 16_000
"""Samples a second, of Gemma 3n's audio processor."""


def picture(request: Request, side: int, *, scaled: bool = True) -> Image.Image:
    """The user's picture, or a generated one, scaled to a square.

    Args:
        request: What the user gave, and the seed.
        side: Height and width in pixels.
        scaled: Whether the user's picture is; else it stays as large as it is.

    Raises:
        UsageError: If the file is no picture, or one of numbers without a known range.
    """
    if request.image is None:
        return Image.fromarray(_scene(side, np.random.default_rng(request.seed)))
    try:
        with Image.open(request.image) as opened:
            upright = _colours(ImageOps.exif_transpose(opened))
            return upright.resize((side, side)) if scaled else upright
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
        raise UsageError(f"--image {request.image} cannot be read as a picture: {why_unread(error)}") from error


def _colours(opened: Image.Image) -> Image.Image:
    """A picture in 8 bits of red, green and blue. Pillow cuts what has more bits at 255 instead of scaling it."""
    if opened.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8)).convert("RGB")
    if opened.mode in {"I", "F"}:
        raise ValueError("its numbers of 32 bits have no range that says what is white; save it as an 8-bit PNG")
    return opened.convert("RGB")


def _scene(side: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A sky above a chequered plain, with grain: smooth areas, hard edges, dark and bright, shape (side, side, 3)."""
    y, x = np.mgrid[0:side, 0:side] / side
    sky = np.stack([0.3 + 0.4 * y, 0.5 + 0.3 * y, 0.95 - 0.2 * y], axis=-1)
    tiles = ((np.floor(x * 12) + np.floor(y * 12)) % 2)[..., None] * np.array([0.8, 0.75, 0.6])
    scene = np.where((y > 0.6)[..., None], tiles, sky)  # noqa: PLR2004  # the horizon
    scene += rng.normal(0, 0.02, scene.shape)
    return np.round(255 * scene.clip(0, 1)).astype(np.uint8)


def waveform(request: Request) -> npt.NDArray[np.float32]:
    """Samples from -1 to 1, 16 kHz: the user's, or two seconds of a rising tone with noise and a pause.

    Args:
        request: What the user gave, and the seed.

    Raises:
        UsageError: If the file is no sound, or not such a one.
    """
    if request.audio is not None:
        return _read_wave(request.audio)
    rng = np.random.default_rng(request.seed)
    seconds = np.arange(2 * RATE) / RATE
    tone = 0.5 * np.sin(2 * np.pi * (200 * seconds + 400 * seconds**2)) * (np.abs(seconds - 1) > 0.1)  # noqa: PLR2004
    return (tone + rng.normal(0, 0.01, seconds.size)).astype(np.float32)


def _read_wave(path: Path) -> npt.NDArray[np.float32]:
    try:
        with wave.open(str(path), "rb") as stream:
            kind = (stream.getframerate(), stream.getsampwidth())
            channels, data = stream.getnchannels(), stream.readframes(stream.getnframes())
    except EOFError as error:  # without a message
        raise UsageError(f"--audio {path} cannot be read as WAV: it ends in the middle of its header") from error
    except (OSError, wave.Error) as error:
        why = f"{why_unread(error)}{'' if isinstance(error, OSError) else _CONVERT.format(quote(str(path)))}"
        raise UsageError(f"--audio {path} cannot be read as WAV: {why}") from error
    if kind != (RATE, 2):
        has = f"{kind[0]:,} Hz, {8 * kind[1]} bits; it must be 16,000 Hz, 16 bits{_CONVERT.format(quote(str(path)))}"
        raise UsageError(f"--audio {path}: {has}")
    whole = len(data) - len(data) % (2 * channels)  # a recording that was cut off may end within a sample
    samples = np.frombuffer(data[:whole], np.int16).astype(np.float32) / 32768
    mono: npt.NDArray[np.float32] = samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return mono


_CONVERT = "; ffmpeg -i {} -ac 1 -ar 16000 -c:a pcm_s16le sound.wav makes one"
"""The next step for a sound of another kind."""


def why_unread(error: BaseException) -> str:
    """Why a file cannot be read, without its name, which the message has already."""
    strerror = getattr(error, "strerror", None)
    return str(strerror) if strerror else first_line(error)
