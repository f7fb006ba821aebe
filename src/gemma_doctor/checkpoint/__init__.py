"""Where tensors come from: safetensors files, folders and indexes, read strictly and never trusted."""

from gemma_doctor.checkpoint.local import open_checkpoint
from gemma_doctor.checkpoint.model import Checkpoint
from gemma_doctor.checkpoint.reader import FileBytes, sha256

__all__ = ["Checkpoint", "FileBytes", "open_checkpoint", "sha256"]
