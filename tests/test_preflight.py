"""The callback for the Trainer of transformers, in real runs of a tiny Gemma 3."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tiny_models  # noqa: F401  # prepares the import of transformers
import torch
import transformers
from torch import nn

from gemma_doctor import PreflightCallback, PreflightError
from gemma_doctor.errors import UsageError
from gemma_doctor.reports.machine import from_json, to_dict, to_json

CONFIG = transformers.Gemma3TextConfig(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
)
UP = "model.layers.0.mlp.up_proj.weight"


class Tokens(torch.utils.data.Dataset):  # type: ignore[misc]  # torch is not read by the type checker
    """Four times the same eight tokens."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.arange(8)
        return {"input_ids": tokens, "labels": tokens}


def model(**values: float) -> Any:  # noqa: ANN401  # a class of transformers
    """A tiny Gemma 3 with these values in the first element of the first two layers' up projections."""
    torch.manual_seed(0)
    made = transformers.Gemma3ForCausalLM(CONFIG)
    for layer, value in enumerate(values.values()):
        made.model.layers[layer].mlp.up_proj.weight.view(-1)[0] = value
    return made


class Steps(transformers.TrainerCallback):  # type: ignore[misc]  # as above
    """Counts the steps that were begun."""

    begun = 0

    def on_step_begin(self, *_: object, **__: object) -> None:
        """One more."""
        self.begun += 1


def train(sick: Any, callback: PreflightCallback, folder: Path) -> int:  # noqa: ANN401  # as above
    """Train one step: how many were begun."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    steps = Steps()
    with torch.enable_grad():
        trainer = transformers.Trainer(sick, arguments, train_dataset=Tokens(), callbacks=[callback, steps])
        try:
            trainer.train()
        except PreflightError:
            assert steps.begun == 0
            raise
    return steps.begun


def test_a_sound_model_is_trained_without_a_word(tmp_path: Path) -> None:
    callback = PreflightCallback()
    assert train(model(), callback, tmp_path) == 1
    assert callback.report is not None
    assert callback.report.complete
    assert (callback.report.findings, callback.report.target_dtype) == ((), "bfloat16")
    names = {name for name, _ in model().named_parameters()}
    assert {tensor.info.name for tensor in callback.report.tensors} == names


def test_a_nan_stops_the_run_before_its_first_step(tmp_path: Path) -> None:
    callback = PreflightCallback()
    with pytest.raises(PreflightError, match=r"^the weights are sick before the first step\nSick: 1 error") as error:
        train(model(nan=torch.nan), callback, tmp_path)
    assert f"\nerror GD101 nonfinite-weight\n  {UP}\n      1 NaN and 0 infinite among 2,048 F32" in str(error.value)
    assert callback.report is not None
    assert [finding.rule for finding in callback.report.findings] == ["GD101"]


def test_float16_s_range_counts_where_the_run_computes_in_it(tmp_path: Path) -> None:
    assert train(model(sound=0.5, big=70000), PreflightCallback(ignore=["GD108"]), tmp_path) == 1
    with pytest.raises(PreflightError, match="GD102 fp16-weight-overflow"):
        train(model(sound=0.5, big=70000), PreflightCallback(target_dtype="float16"), tmp_path)
    callback = PreflightCallback()
    with pytest.raises(PreflightError, match="GD101"):  # 70000 has become inf
        train(model(sound=0.5, big=70000).half(), callback, tmp_path)
    assert callback.report is not None
    assert callback.report.target_dtype == "float16"


def test_below_fail_on_it_warns_and_at_it_stops(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"^gemma-doctor, before the first step: At risk: 1 warning.*\n\nwarning GD103"
    ):
        assert train(model(near=40000), PreflightCallback(target_dtype="float16"), tmp_path) == 1
    with pytest.raises(PreflightError, match="GD103"):
        train(model(near=40000), PreflightCallback("warning", target_dtype="float16"), tmp_path)


def test_never_stops_nothing() -> None:
    with pytest.warns(UserWarning, match="Sick: 1 error"), torch.no_grad():
        PreflightCallback("never").on_train_begin(*begin(), model=model(nan=torch.nan))


def begin() -> tuple[Any, Any, Any]:
    """What the Trainer tells a callback."""
    arguments = transformers.TrainingArguments(use_cpu=True, report_to=[])
    return arguments, transformers.TrainerState(), transformers.TrainerControl()


def examined(module: nn.Module, **options: Any) -> Any:  # noqa: ANN401  # a report
    """The report on any module, whatever it says."""
    callback = PreflightCallback("never", **options)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        callback.on_train_begin(*begin(), model=module)
    report = callback.report
    assert report is not None
    assert bool(said) == (report.worst in {"error", "warning"} or not report.complete)
    return report


def test_zero_keys_and_values_of_shared_layers_are_found_in_memory() -> None:
    names = {
        "model.language_model.layers.2.self_attn.k_proj.weight": torch.zeros(16, 32),
        "model.language_model.layers.0.self_attn.k_proj.weight": torch.ones(16, 32),
    }
    module = tree(names)
    module.config = transformers.Gemma3nConfig(
        text_config={
            "num_hidden_layers": 3,
            "num_kv_shared_layers": 1,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "hidden_size": 32,
            "head_dim": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }
    )
    report = examined(module)
    (finding,) = [one for one in report.findings if one.rule == "GD201"]
    assert finding.tensor == "model.language_model.layers.2.self_attn.k_proj.weight"
    assert report.source.architecture == "gemma3n"


def tree(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A module with parameters of these names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
    return root


@pytest.mark.parametrize("wrapped", ["module.{}", "base_model.model.{}", "_orig_mod.{}", "module._orig_mod.{}"])
def test_what_wraps_a_model_is_no_part_of_its_names(wrapped: str) -> None:
    report = examined(tree({wrapped.format("a.b.weight"): torch.full((2, 2), torch.inf)}))
    assert [finding.tensor for finding in report.findings] == ["a.b.weight"]


def test_an_adapted_layer_has_its_own_name_and_its_adapter_may_be_zero() -> None:
    zero = torch.zeros(2, 2)
    tensors = {
        "q.base_layer.weight": torch.ones(2, 2),
        "q.lora_A.d.weight": torch.ones(2, 2),
        "q.lora_B.d.weight": zero,
    }
    report = examined(tree(tensors))
    assert [tensor.info.name for tensor in report.tensors] == ["q.weight", "q.lora_A.d.weight", "q.lora_B.d.weight"]
    assert report.findings == ()
    assert [found.rule for found in examined(tree({"q.weight": zero})).findings] == ["GD106"]


def test_two_tensors_never_have_one_name() -> None:
    report = examined(tree({"a.base_layer.weight": torch.ones(2), "a.weight": torch.ones(2)}))
    assert sorted(tensor.info.name for tensor in report.tensors) == ["a.base_layer.weight", "a.weight"]


def test_buffers_that_a_checkpoint_holds_are_examined_and_others_are_not() -> None:
    norm = nn.BatchNorm1d(4)
    norm.running_var.fill_(497_160)
    norm.register_buffer("scratch", torch.full((4,), torch.nan), persistent=False)
    report = examined(norm, target_dtype="float16")
    assert [found.tensor for found in report.findings if found.severity == "error"] == ["running_var"]
    assert {tensor.info.name for tensor in report.tensors} == {"weight", "bias", "running_mean", "running_var"}


def test_what_cannot_be_examined_is_named_and_does_not_stop_the_run() -> None:
    module = tree(
        {"sound": torch.ones(2), "packed": torch.ones(2, dtype=torch.uint8), "away": torch.ones(2, device="meta")}
    )
    shard = nn.Parameter(torch.ones(2))
    shard.ds_numel = 8
    module.register_parameter("shard", shard)
    report = examined(module)
    assert {item.tensor: item.reason for item in report.coverage.skipped} == {
        "packed": "it holds torch.uint8, so it is quantised",
        "away": "it lies on no device (meta)",
        "shard": "this process may hold a part of it only (Tensor)",
    }
    assert (report.coverage.expected, report.coverage.measured) == (4, 1)
    callback = PreflightCallback()
    with pytest.warns(UserWarning, match="Could not tell, 3 of 4 tensors not measured"):
        callback.on_train_begin(*begin(), model=module)


class FullyShardedDataParallel(nn.Module):  # type: ignore[misc]  # as above
    """Called as torch's own, which flattens and shards the parameters within."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


def test_a_sharded_model_is_not_judged_by_its_shards() -> None:
    report = examined(nn.Sequential(FullyShardedDataParallel()))
    (skipped,) = report.coverage.skipped
    assert skipped.reason == "this process holds a shard of it only"


def test_every_dtype_of_torch_s_that_holds_floats_is_examined() -> None:
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
    report = examined(tree({f"t{index}": torch.full((2, 3), 1.5).to(dtype) for index, dtype in enumerate(dtypes)}))
    assert [tensor.info.dtype for tensor in report.tensors] == ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"]
    assert {tensor.stats.absmax for tensor in report.tensors} == {1.5}
    assert {tensor.stats.row_l1_max for tensor in report.tensors} == {4.5}


def test_a_transposed_parameter_is_measured_in_its_own_order() -> None:
    report = examined(tree({"a": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).t()}))
    assert report.tensors[0].stats.row_l1_max == 12.0


def test_its_report_is_a_report_like_any_other() -> None:
    report = examined(model(nan=torch.nan))
    assert to_dict(from_json(to_json(report))) == to_dict(report)
    schema = json.loads((files("gemma_doctor") / "report.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(to_dict(report))
    assert replace(report, seconds=0).source.uri == "Gemma3ForCausalLM in memory"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"fail_on": "fatal"}, "fail_on is 'fatal'; it is one of error, warning, note, never"),
        ({"target_dtype": "float8"}, "target_dtype is 'float8'; it is one of float16, bfloat16"),
        ({"ignore": ["GD9"]}, "no rule has the id or prefix 'GD9'"),
    ],
)
def test_what_it_does_not_know_is_refused_when_it_is_made(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        PreflightCallback(**options)
