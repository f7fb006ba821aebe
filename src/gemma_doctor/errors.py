"""What can go wrong, as one tree.

::

    DoctorError                  everything this package raises on purpose
    ├── UsageError               the call cannot be carried out as asked (also a ValueError)
    │   ├── SourceNotFoundError  nothing readable at SOURCE
    │   └── SettingsError        a configuration file, baseline or allow entry is wrong
    ├── CheckpointError          the checkpoint's bytes cannot be trusted
    │   ├── HeaderError          a safetensors or GGUF header breaks the format
    │   ├── IndexFileError       an index or config file cannot be read
    │   ├── ChangedError         the file changed while it was read, or since the plan was made
    │   └── TransferError        what is elsewhere does not come, or not as it should
    ├── ClusterError             the workers that were to measure are missing, unfit or lost
    ├── OutputError              the output could not be written; nothing of it is left
    └── PreflightError           the weights of a model that is about to be trained are sick

Every message names the file, the tensor and the limit where there is one, and the next step.
The command line turns each of them into one sentence and exit code 2.
"""

from __future__ import annotations

__all__ = [
    "ChangedError",
    "CheckpointError",
    "ClusterError",
    "DoctorError",
    "HeaderError",
    "IndexFileError",
    "OutputError",
    "PreflightError",
    "SettingsError",
    "SourceNotFoundError",
    "TransferError",
    "UsageError",
]


class DoctorError(Exception):
    """Base of every error that gemma-doctor raises on purpose."""


class UsageError(DoctorError, ValueError):
    """The call cannot be carried out as asked."""


class SourceNotFoundError(UsageError):
    """SOURCE names nothing that can be read as a checkpoint."""


class SettingsError(UsageError):
    """A configuration file, a baseline or an allow entry is wrong."""


class CheckpointError(DoctorError):
    """The checkpoint's bytes cannot be trusted."""


class HeaderError(CheckpointError):
    """A safetensors header breaks the format."""


class IndexFileError(CheckpointError):
    """An index or config file of the checkpoint cannot be read."""


class ChangedError(CheckpointError):
    """A file changed while it was being read, or since a plan was made for it."""


class TransferError(CheckpointError):
    """The Hub, or another store, does not answer, or its answers cannot be trusted."""


class ClusterError(DoctorError):
    """The workers that were to measure are not there, do not fit, or were lost too often."""


class OutputError(DoctorError):
    """The output could not be written, and nothing of it is left; or, if the message says so, the disk is in doubt."""


class PreflightError(DoctorError):
    """The weights of a model that is about to be trained are sick; the message holds the findings."""
