"""The rules of a scan."""

from __future__ import annotations

from gemma_doctor.examination import Examination
from gemma_doctor.inspect.rules import (
    gd001_unreadable_shard,
    gd002_index_mismatch,
    gd003_unsafe_path,
    gd004_missing_format_metadata,
    gd101_nonfinite_weight,
    gd102_fp16_weight_overflow,
    gd103_fp16_weight_near_limit,
    gd104_fp16_conv_overflow_risk,
    gd105_fp16_underflow,
    gd106_all_zero_tensor,
    gd107_dead_rows,
    gd108_outlier_magnitude,
    gd109_nonpositive_norm_gain,
    gd201_zero_shared_kv,
    gd202_dead_shared_kv,
    gd203_dtype_config_mismatch,
    gd204_mixed_dtype_module,
    gd205_missing_tensor,
    gd206_unexpected_tensor,
    gd207_shape_mismatch,
    gd208_stored_tied_head,
    gd209_stale_key_layout,
    gd210_missing_stem_bias,
    gd301_fp16_residual_overflow_risk,
    gd501_gguf_shared_kv_type,
    gd502_gguf_vocab_rows,
    gd503_gguf_per_layer_embedding_type,
)
from gemma_doctor.rule import Rule

__all__ = ["RULES"]

RULES: tuple[Rule[Examination], ...] = (
    gd001_unreadable_shard.RULE,
    gd002_index_mismatch.RULE,
    gd003_unsafe_path.RULE,
    gd004_missing_format_metadata.RULE,
    gd101_nonfinite_weight.RULE,
    gd102_fp16_weight_overflow.RULE,
    gd103_fp16_weight_near_limit.RULE,
    gd104_fp16_conv_overflow_risk.RULE,
    gd105_fp16_underflow.RULE,
    gd106_all_zero_tensor.RULE,
    gd107_dead_rows.RULE,
    gd108_outlier_magnitude.RULE,
    gd109_nonpositive_norm_gain.RULE,
    gd201_zero_shared_kv.RULE,
    gd202_dead_shared_kv.RULE,
    gd203_dtype_config_mismatch.RULE,
    gd204_mixed_dtype_module.RULE,
    gd205_missing_tensor.RULE,
    gd206_unexpected_tensor.RULE,
    gd207_shape_mismatch.RULE,
    gd208_stored_tied_head.RULE,
    gd209_stale_key_layout.RULE,
    gd210_missing_stem_bias.RULE,
    gd301_fp16_residual_overflow_risk.RULE,
    gd501_gguf_shared_kv_type.RULE,
    gd502_gguf_vocab_rows.RULE,
    gd503_gguf_per_layer_embedding_type.RULE,
)
"""Every rule, by id. Literal on purpose: nothing is registered by being imported."""
