"""Documents of strangers: mutated ones, and those that are made to exhaust memory or time.

``tools/fuzz.py`` goes on where the first two tests stop.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import checkpoint_bytes
import numpy as np
import pytest
from checkpoints import tiny_gemma3_config, tiny_gemma3_multimodal_config, tiny_gemma3n_config, write
from command import call
from hostile_documents import corpus, targets

TARGETS = targets()
NUMBER = "9" * 5000
LAYERS = ("num_hidden_layers", "conf_num_hidden_layers", "altup_num_inputs", "num_attention_heads", "patch_size")


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_refused_or_keeps_the_readers_law(name: str) -> None:
    """What an hour of fuzzing kept: every step from line to line that it reached."""
    documents = corpus(name)
    accepted = sum(map(TARGETS[name].reader, documents))
    assert accepted < len(documents)
    assert all(map(TARGETS[name].reader, TARGETS[name].seeds))


@pytest.mark.parametrize("name", TARGETS)
def test_mutants_are_refused_or_keep_the_readers_law(name: str) -> None:
    rng, target = random.Random(5), TARGETS[name]
    accepted = sum(target.reader(checkpoint_bytes.mutated(rng.choice(target.seeds), rng)) for _ in range(150))
    assert 0 < accepted < 150


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + NUMBER.encode() + b"}",
        b"a = " + NUMBER.encode(),
    ],
    ids=["empty", "NUL", "UTF-16", "brackets", "braces", "digits", "TOML digits"],
)
def test_what_is_no_document_is_refused(name: str, text: bytes) -> None:
    assert not TARGETS[name].reader(text) or (name, text) == ("settings", b"")


@pytest.mark.parametrize("command", [("scan",), ("repair", "--output", "out")])
def test_a_link_that_leads_to_itself_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any) -> None:  # noqa: ANN401
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").symlink_to("model.safetensors")
    done = call(command[0], "model.safetensors", *command[1:])
    assert done.code == 2
    assert "model.safetensors" in done.out + done.err
    assert "Traceback" not in done.err
    assert not Path("out").exists()


def test_a_limit_beyond_float64_is_refused() -> None:
    seed = json.loads(TARGETS["plan"].seeds[0])
    next(edit for edit in seed["edits"] if edit["op"] == "clamp")["limit"] = 10**309
    assert not TARGETS["plan"].reader(json.dumps(seed).encode())


def test_a_peak_beyond_float64_is_refused() -> None:
    seed = json.loads(TARGETS["trace"].seeds[0])
    assert TARGETS["trace"].reader(json.dumps(seed).encode())
    seed["activations"][0]["peak"] = 10**309
    assert not TARGETS["trace"].reader(json.dumps(seed).encode())


@pytest.mark.parametrize(
    "value", [10**9, 2**63, -1, 0, 1e308, 10**309, float("nan"), float("inf"), "9" * 10**6, [[]] * 10**5, {}]
)
@pytest.mark.parametrize("make", [tiny_gemma3_config, tiny_gemma3_multimodal_config, tiny_gemma3n_config])
def test_a_config_cannot_exhaust_memory_or_time(make: Any, value: object) -> None:  # noqa: ANN401
    """Every number of a config, one after the other, becomes what nobody would write."""
    config, started = make(), time.process_time()
    for section in (config, *(part for part in config.values() if isinstance(part, dict))):
        for key in [key for key, kept in section.items() if isinstance(kept, int)]:
            kept, section[key] = section[key], value
            TARGETS["config"].reader(json.dumps(config).encode())
            section[key] = kept
    assert time.process_time() - started < 20
    for key in LAYERS:
        if key in config:
            assert not TARGETS["config"].reader(json.dumps({**config, key: 10**9}).encode())


LIMITED = """
import resource, sys
from gemma_doctor.cli import main
resource.setrlimit(resource.RLIMIT_DATA, (500_000_000, 500_000_000))
main()
"""


def limited(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command with half a gigabyte of memory beside what is mapped."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    words = [sys.executable, "-c", LIMITED, *command]
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("make", [tiny_gemma3_config, tiny_gemma3n_config])
def test_the_deepest_config_that_is_allowed_is_scanned_in_half_a_gigabyte(tmp_path: Path, make: Any) -> None:  # noqa: ANN401
    config = make()
    section = config.get("text_config", config)
    section |= {"num_hidden_layers": 1024, "num_kv_shared_layers": 0}
    for key in ("layer_types", "intermediate_size", "activation_sparsity_pattern"):
        section.pop(key, None)
    write(tmp_path / "deep", {"model.norm.weight": np.ones(16, np.float32)}, config)
    done = limited("scan", "deep", "--json", "report.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert sum(finding["rule"] == "GD205" for finding in report["findings"]) > 1024


def nested(depth: int) -> str:
    return '{"a":' * depth + "{}" + "}" * depth


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (nested(10_000), "nested deeper than 127 levels"),
        (json.dumps({**tiny_gemma3_config(), "num_hidden_layers": 10**9}), "num_hidden_layers is 1000000000"),
        (json.dumps({**tiny_gemma3_config(), "hidden_size": -16}), "hidden_size is -16"),
        (json.dumps({**tiny_gemma3n_config(), "text_config": {"num_hidden_layers": 10**9}}), "1000000000"),
    ],
    ids=["nesting", "layers", "negative", "layers below"],
)
def test_a_hostile_config_ends_a_scan_in_a_sentence(tmp_path: Path, config: str, words: str) -> None:
    write(tmp_path / "model", {"a.weight": np.ones((4, 4), np.float32)})
    (tmp_path / "model/config.json").write_text(config)
    done = limited("scan", "model", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("gemma-doctor: config.json")
    assert words in sentence


NAMES = {
    "shards": "model-{:07}.safetensors",
    "below": "../{}.safetensors",
    "absolute": "/etc/{}",
    "NUL": "a\0{}",
    "long": "x" * 300 + "{}",
}
"""Names of files as an index may give them, each with a number in it."""


@pytest.mark.parametrize("kind", NAMES)
def test_an_index_that_names_too_many_files_is_refused(tmp_path: Path, kind: str) -> None:
    """A tenth of a million; the million takes ten times the memory, and is refused as well."""
    index = {"weight_map": {f"{number}.weight": NAMES[kind].format(number) for number in range(100_000)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    done = limited("scan", ".", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.endswith("names more than 10,000 files, the limit. Write the index anew, or download it again.")


@pytest.mark.parametrize("kind", NAMES)
def test_an_index_of_files_that_are_not_there_names_each(tmp_path: Path, kind: str) -> None:
    index = {"weight_map": {f"{number}.weight": NAMES[kind].format(number) for number in range(300)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    done = limited("scan", ".", "--json", "-", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert (done.returncode, report["coverage"]["measured"], len(report["coverage"]["skipped"])) == (2, 0, 300)
    expected = {"shards": "GD002", "long": "GD001"}.get(kind, "GD003")
    assert [finding["rule"] for finding in report["findings"]] == [expected] * 300


@pytest.mark.parametrize("name", ["config.json", "gemma-doctor.toml"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
def test_special_files_are_never_waited_for(tmp_path: Path, name: str, kind: str) -> None:
    folder = write(tmp_path / "model", {"a.weight": np.ones((4, 4), np.float32)})
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else "/dev/zero")
    done = call("scan", folder)
    assert done.code in (0, 2)
    assert done.code == 0 or name in done.err


@pytest.mark.parametrize("option", ["--baseline", "--config"])
def test_a_device_without_end_is_no_settings_file(tmp_path: Path, option: str) -> None:
    folder = write(tmp_path / "model", {"a.weight": np.ones((4, 4), np.float32)})
    done = call("scan", folder, option, "/dev/zero")
    assert (done.code, done.out) == (2, "")
    assert "larger than 16 MiB" in done.err
