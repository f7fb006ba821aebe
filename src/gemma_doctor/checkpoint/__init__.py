"""Where tensors come from: safetensors files, folders and indexes, near or far, read strictly and never trusted."""

from gemma_doctor.checkpoint.model import Checkpoint
from gemma_doctor.checkpoint.opening import is_repository, open_bytes, open_checkpoint, sha256
from gemma_doctor.checkpoint.reader import FileBytes
from gemma_doctor.checkpoint.tensor_bytes import TensorBytes

__all__ = ["Checkpoint", "FileBytes", "TensorBytes", "is_repository", "open_bytes", "open_checkpoint", "sha256"]
