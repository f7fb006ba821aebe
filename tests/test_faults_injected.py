"""Each kind of harm once, from outside: commands that are killed, interrupted or starved lose nothing.

``tools/inject_faults.py`` does the same at many random moments, and harms ``verify`` too.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import ggufs
import pytest
from applying import tree
from checkpoints import healthy, plant_published, tiny_gemma3n_config, write
from gguf.constants import GGUFValueType
from harm import KILLED, Ended, Harm, Scene, judge, prepare, set_up
from harms import HARMS
from harms_far import DASK_HARMS, hub_harms, of_hub
from harms_gguf import BACKUP, GGUF_HARMS, NAME, lost_in_place
from hub_server import Hub, hub, repository


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A small Gemma 3n with the published faults, and what the commands make of it."""
    config = tiny_gemma3n_config()
    source = write(tmp_path_factory.mktemp("sick"), plant_published(healthy(config)), config, shards=2)
    return set_up(tmp_path_factory.mktemp("scene"), source)


@pytest.mark.parametrize("name", [name for name in HARMS if "killed" not in name or "scan" in name])
def test_nothing_is_lost(scene: Scene, name: str) -> None:
    nothing_lost(scene, name, HARMS[name])


def nothing_lost(scene: Scene, name: str, harm: Harm) -> None:
    """One attempt; one that this machine cannot do is skipped."""
    if scene.shim is None and "fail" in name:
        pytest.skip("no C compiler")
    try:
        outcome = harm(scene, random.Random(3))
    except RuntimeError as problem:
        pytest.skip(str(problem))
    assert outcome.lost == ()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A small GGUF file whose number of layers that share KV has the wrong type."""
    source = tmp_path_factory.mktemp("gguf")
    ggufs.gemma3n(source / NAME, (GGUFValueType.FLOAT32, 10.0))
    return set_up(tmp_path_factory.mktemp("packed"), source)


@pytest.mark.parametrize("name", [name for name in GGUF_HARMS if "place" in name or name == "GGUF: repair killed"])
def test_nothing_is_lost_of_a_gguf_file(packed: Scene, name: str) -> None:
    nothing_lost(packed, name, GGUF_HARMS[name])


@pytest.mark.parametrize("name", hub_harms(Hub()))
def test_nothing_is_lost_over_http(scene: Scene, name: str) -> None:
    with hub(name=repository(scene.source)) as server:
        nothing_lost(of_hub(scene, server), name, hub_harms(server)[name])


@pytest.mark.parametrize("name", DASK_HARMS)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_is_lost_on_a_cluster(scene: Scene, name: str) -> None:
    nothing_lost(scene, name, DASK_HARMS[name])


def test_the_judge_of_files_mended_in_place_sees_each_kind_of_loss(packed: Scene, tmp_path: Path) -> None:
    old, file, backup = (packed.source / NAME).read_bytes(), tmp_path / NAME, tmp_path / BACKUP
    file.write_bytes(old)
    assert lost_in_place(packed, Ended(2, ""), tmp_path) == ()
    assert lost_in_place(packed, Ended(0, ""), tmp_path) == ("it says that the file is mended",)
    backup.write_bytes(old[:100])
    assert lost_in_place(packed, Ended(KILLED, ""), tmp_path) == ()
    assert "it is not said what for" in lost_in_place(packed, Ended(2, ""), tmp_path)[0]
    assert "interrupted" in " ".join(lost_in_place(packed, Ended(130, ""), tmp_path))
    file.write_bytes(old[:-1])
    assert lost_in_place(packed, Ended(KILLED, ""), tmp_path, cut=True) == ()
    assert lost_in_place(packed, Ended(KILLED, ""), tmp_path) == ("the file is neither the old one nor the mended one",)


def test_the_judge_sees_each_kind_of_loss(scene: Scene) -> None:
    """Lest the counts of the others mean nothing."""
    prepare(scene, old=True)
    assert judge(scene, Ended(0, ""), (0,), old=True) == ()
    assert "exit code 1" in judge(scene, Ended(1, ""), (0,), old=True)[0]
    assert "Warning" in judge(scene, Ended(0, "RuntimeWarning: x"), (0,), old=True)[0]
    (scene.output / "old").unlink()
    assert judge(scene, Ended(0, ""), (0,), old=True) == ("the older output is gone",)
    (scene.output / "config.json").write_text("{}", encoding="utf-8")
    (scene.place / ".partial").touch()
    scene.document.write_text('{"summary": ', encoding="utf-8")
    lost = " ".join(judge(scene, Ended(0, ""), (0,)))
    assert all(word in lost for word in ("torn", "left behind: ['.partial']", "half-written"))
    shard = next(iter(scene.source.glob("*.safetensors")))
    whole = shard.read_bytes()
    os.truncate(shard, len(whole) - 1)
    prepare(scene)
    assert judge(scene, Ended(2, ""), (2,)) == ("the source has changed",)
    shard.write_bytes(whole)
    assert tree(scene.source) == scene.before
