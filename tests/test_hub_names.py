"""Names of the Hub are read as huggingface_hub reads its URIs."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import parse_hf_uri
from huggingface_hub.errors import HfUriError
from hypothesis import example, given
from hypothesis import strategies as st

from gemma_doctor.checkpoint import is_repository, open_checkpoint
from gemma_doctor.checkpoint.hub_names import HubName, hub_name
from gemma_doctor.errors import UsageError

PARTS = st.text("aB1-_.", min_size=1, max_size=4)
REVISIONS = st.sampled_from(
    ["", "@main", "@v1.0", "@refs/pr/3", "@refs/convert/x", "@a%2Fb", "@" + "c0" * 20, "@", "@a@b"]
)
PATHS = st.lists(st.sampled_from(["unet", "a b", "x.gguf", "é", "..x", "", "refs"]), max_size=3).map("/".join)


@example("", "1", "1", "@a@b", "")
@given(st.sampled_from(["", "models/", "datasets/", "buckets/"]), PARTS, PARTS, REVISIONS, PATHS)
def test_a_uri_means_what_huggingface_hub_takes_it_for(
    kind: str, owner: str, name: str, revision: str, path: str
) -> None:
    uri = f"hf://{kind}{owner}/{name}{revision}{path and f'/{path}'}"
    try:
        ours = hub_name(uri)
    except UsageError:
        ours = None
    try:
        theirs = parse_hf_uri(uri)
    except HfUriError:
        theirs = None
    if ours is not None and theirs is not None:
        assert (ours.repo, ours.revision, ours.path) == (theirs.id, theirs.revision, theirs.path_in_repo)
        assert theirs.type == "model"
        assert hub_name(str(ours)) == ours
    elif ours is None and theirs is not None:
        assert theirs.type != "model"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("owner/name", HubName("owner/name")),
        ("owner/name@v1", HubName("owner/name", "v1")),
        ("owner/name/q4.gguf", HubName("owner/name", None, "q4.gguf")),
        ("owner/name@v1/q4/m.gguf", HubName("owner/name", "v1", "q4/m.gguf")),
        ("owner/name@v1/unet", HubName("owner/name", "v1", "unet")),
        ("owner/model.safetensors", None),
        ("owner/name/unet", None),
        ("./owner/name/q4.gguf", None),
        ("/owner/name", None),
        ("owner", None),
        ("s3://owner/name", None),
        ("https://owner/name/q4.gguf", None),
    ],
)
def test_what_has_no_scheme_is_a_name_only_where_nothing_else_can_be_meant(source: str, name: HubName | None) -> None:
    assert hub_name(source) == name
    assert is_repository(source) == (name is not None)


def test_a_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert hub_name("owner/name") is None
    assert hub_name("owner/name/q4.gguf") is None  # it is missing here, and not meant to be elsewhere
    assert hub_name("hf://owner/name/q4.gguf") == HubName("owner/name", None, "q4.gguf")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        (
            "hf://datasets/owner/name/x.safetensors",
            "model repositories are read .* this is below datasets/. Give a file's",
        ),
        ("hf://buckets/owner/name", "this is below buckets/"),
        ("hf://gpt2", "not a name of the Hub. Write hf://owner/name"),
        ("hf://owner/name/../x.gguf", "not a name of the Hub"),
    ],
)
def test_a_uri_that_names_no_model(uri: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_checkpoint(uri)
