"""Each kind of harm once, from outside: commands that are killed, interrupted or starved lose nothing.

``tools/inject_faults.py`` does the same at many random moments, and harms ``verify`` too.
"""

from __future__ import annotations

import os
import random

import pytest
from applying import tree
from checkpoints import healthy, plant_published, tiny_gemma3n_config, write
from harm import Ended, Scene, judge, prepare, set_up
from harms import HARMS


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A small Gemma 3n with the published faults, and what the commands make of it."""
    config = tiny_gemma3n_config()
    source = write(tmp_path_factory.mktemp("sick"), plant_published(healthy(config)), config, shards=2)
    return set_up(tmp_path_factory.mktemp("scene"), source)


@pytest.mark.parametrize("name", [name for name in HARMS if "killed" not in name or "scan" in name])
def test_nothing_is_lost(scene: Scene, name: str) -> None:
    if scene.shim is None and "fail" in name:
        pytest.skip("no C compiler")
    try:
        outcome = HARMS[name](scene, random.Random(3))
    except RuntimeError as problem:
        pytest.skip(str(problem))
    assert outcome.lost == ()


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
