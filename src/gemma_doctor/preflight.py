"""A sanity check before step 0: a callback for the Trainer of transformers. It needs torch and transformers.

::

    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[gemma_doctor.PreflightCallback()])
    trainer.train()

It examines the weights as they stand in memory, for they are what will be trained: with whatever was cast, added,
dropped or initialised anew since the checkpoint. The kernel and the rules are those of a scan, so that a finding means
the same; left out are the rules on files, key layouts and stored dtypes, which say nothing of a model in memory. For
those there is ``gemma-doctor scan``.
"""

from __future__ import annotations

import io
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gemma_doctor import catalog
from gemma_doctor.checkpoint import Checkpoint
from gemma_doctor.choices import FAIL_ON, LOADERS, TARGET_DTYPES, FailOn, TargetDtype, failing
from gemma_doctor.errors import PreflightError, UsageError
from gemma_doctor.examination import assemble
from gemma_doctor.inspect import registry
from gemma_doctor.kernels.measure import measure
from gemma_doctor.records import Coverage, Finding, Report, Skipped, Source
from gemma_doctor.reports import terminal
from gemma_doctor.reports.sheet import rendered
from gemma_doctor.tensors import TensorInfo, TensorStats
from gemma_doctor.verify.dtypes import NAMES, name_of
from gemma_doctor.version import __version__

__all__ = ["PreflightCallback"]

_OF_FILES = ("GD0", "GD2")  # rules on files, layouts and stored dtypes,
_OF_MODELS = ("ALL", "GD201", "GD202")  # but for these two, which look at values

_WRAPPERS = ("base_model.model.", "module.", "_orig_mod.")  # of peft, DistributedDataParallel and torch.compile
_ADAPTED = ".base_layer."  # what peft puts into the name of a layer that it adapts
_ZERO_AT_FIRST = (".lora_B.", ".lora_embedding_A.")  # peft starts them at 0, so that an adapter first changes nothing


class PreflightCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not read by the type checker
    """Stops a training run before step 0 where the weights are sick.

    What is examined: every floating-point parameter and persistent buffer of the model in this process, each to its
    last element, by the rules on values (all but GD0 and GD2, of which GD201 and GD202 stay). Each is copied to the CPU
    in turn. What is not: quantised weights, which are no floats; parameters that lie on no device; and parameters of
    which this process holds a shard only (FSDP, ZeRO-3). A warning names them: they do not stop the run.

    Attributes:
        report: What was found, once training has begun; None before.
    """

    def __init__(
        self,
        fail_on: FailOn = "error",
        *,
        target_dtype: TargetDtype | None = None,
        ignore: Sequence[str] = (),
    ) -> None:
        """A callback.

        Args:
            fail_on: The least severity of a finding that stops the run; graver ones than notes below it are a warning.
            target_dtype: The dtype to judge the weights for. Where None, float16 if the run computes in it (``fp16`` of
                the arguments, or a float16 parameter), else bfloat16, whose range is float32's.
            ignore: Ids or prefixes of rules to leave out.

        Raises:
            UsageError: If there is no such severity, dtype or rule.
        """
        if fail_on not in FAIL_ON:
            raise UsageError(f"fail_on is {fail_on!r}; it is one of {', '.join(FAIL_ON)}")
        if target_dtype not in {*TARGET_DTYPES, None}:
            raise UsageError(f"target_dtype is {target_dtype!r}; it is one of {', '.join(TARGET_DTYPES)}")
        chosen = catalog.select(_OF_MODELS, (*_OF_FILES, *ignore))
        self._rules = [rule for rule in registry.RULES if rule in chosen]
        self._fail_on = fail_on
        self._target_dtype = target_dtype
        self.report: Report | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002  # the Trainer gives it
        **kwargs: Any,  # noqa: ANN401  # the Trainer's own
    ) -> None:
        """Examine the model.

        Raises:
            PreflightError: If there is a finding at or above ``fail_on``; the message holds all of them.
        """
        model: nn.Module = kwargs["model"]
        self.report = report = self._examine(model, self._target_dtype or _target_of(model, args))
        said = rendered(lambda console: terminal.render_brief(report, console), io.StringIO())
        if any(map(report.count, failing(self._fail_on))):
            raise PreflightError(f"the weights are sick before the first step\n{said}")
        if state.is_world_process_zero and (report.worst in {"error", "warning"} or not report.complete):
            warnings.warn(f"gemma-doctor, before the first step: {said}", stacklevel=2)

    def _examine(self, model: nn.Module, target_dtype: TargetDtype) -> Report:
        started = time.perf_counter()
        held = list(_held(model))
        whole = [one for one in held if not one.problem]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            stats = dict(zip((one.info.name for one in whole), pool.map(_Held.measured, whole), strict=True))
        exam = assemble(_as_checkpoint(model, whole), stats, target_dtype, LOADERS[0], whole=False)
        skipped = tuple(Skipped(one.info.name, one.problem) for one in held if one.problem)
        return Report(
            version=__version__,
            source=Source(exam.checkpoint.uri, None, exam.checkpoint.format, exam.model.family, ()),
            target_dtype=target_dtype,
            loader=exam.loader,
            coverage=Coverage(len(held), len(stats), skipped),
            findings=tuple(found for rule in self._rules for found in rule.check(exam) if not _by_design(found)),
            tensors=tuple(exam.tensors.values()),
            seconds=time.perf_counter() - started,
        )


@dataclass(frozen=True, slots=True)
class _Held:
    """A tensor of the model.

    Attributes:
        info: Its name, dtype and shape.
        tensor: Its values, wherever they lie.
        problem: Why it cannot be examined; empty where it can.
    """

    info: TensorInfo
    tensor: torch.Tensor
    problem: str

    def measured(self) -> TensorStats:
        """Its figures, from a copy on the CPU."""
        values = self.tensor.detach().cpu().contiguous().reshape(-1)
        return measure(values.view(torch.uint8).numpy(), self.info.dtype, self.info.shape)


def _held(model: nn.Module) -> Iterator[_Held]:
    """The parameters and persistent buffers that hold floating-point numbers, or might."""
    sharded = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    tensors = [*model.named_parameters(), *_buffers(model)]
    plain = Counter(_plain(own) for own, _ in tensors)
    for own, tensor in tensors:
        name = _plain(own) if plain[_plain(own)] == 1 else own
        problem = "this process holds a shard of it only" if sharded else _problem(tensor)
        nbytes = tensor.numel() * tensor.element_size()
        info = TensorInfo(name, name_of(tensor.dtype), tuple(tensor.shape), "", 0, nbytes)
        yield _Held(info, tensor, problem)


def _buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The floating-point buffers that a checkpoint would hold."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:  # noqa: SLF001  # only there
                yield f"{prefix}.{name}" if prefix else name, buffer


def _plain(name: str) -> str:
    """The name without what wrappers put before and into it."""
    while any(name.startswith(wrapper) for wrapper in _WRAPPERS):
        name = name.removeprefix(next(wrapper for wrapper in _WRAPPERS if name.startswith(wrapper)))
    return name.replace(_ADAPTED, ".")


def _problem(tensor: torch.Tensor) -> str:
    """Why a tensor cannot be examined; empty where it can."""
    if type(tensor.data) is not torch.Tensor or getattr(tensor, "ds_numel", tensor.numel()) != tensor.numel():
        return f"this process may hold a part of it only ({type(tensor.data).__name__})"
    if tensor.device.type == "meta":
        return "it lies on no device (meta)"
    return "" if tensor.dtype in NAMES else f"it holds {tensor.dtype}, so it is quantised"


def _by_design(finding: Finding) -> bool:
    """Whether a tensor is zero because its training begins there."""
    return finding.rule == "GD106" and any(part in str(finding.tensor) for part in _ZERO_AT_FIRST)


def _target_of(model: nn.Module, args: TrainingArguments) -> TargetDtype:
    """The dtype that the run computes in, as far as its range is concerned."""
    halves = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    return "float16" if args.fp16 or halves else "bfloat16"


def _as_checkpoint(model: nn.Module, held: Sequence[_Held]) -> Checkpoint:
    """What rules see of the model: its tensors and its config, and no file."""
    config = getattr(model, "config", None)
    origin = getattr(config, "name_or_path", "")
    return Checkpoint(
        uri=f"{type(model).__name__} in memory{f', from {origin}' if origin else ''}",
        root=Path(),
        format="torch",
        files=(),
        tensors={one.info.name: one.info for one in held},
        config=config.to_dict() if config is not None else None,
    )
