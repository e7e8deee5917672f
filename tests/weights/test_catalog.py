"""The catalog: what it holds, what it refuses, and the names that lead to it."""

import re
from pathlib import Path

import pytest

from sepcli import DEFAULT
from sepcli.errors import ModelError
from sepcli.weights.catalog import (
    all_files,
    as_table,
    catalog,
    find,
    read_catalog,
    read_entry,
    require_weights,
    total_parameters,
)

GOOD = """
[one]
architecture = "umx.OpenUnmix"
sources = ["a"]
sample_rate = 8000
segment = 1.0
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "weights.toml"
    path.write_text(text)
    return path


def test_a_name_its_alias_and_what_comes_near_it() -> None:
    assert find("hdemucs") is find("hdemucs_mmi")
    with pytest.raises(ModelError, match="unknown model 'hdemuks'") as error:
        find("hdemuks")
    assert "hdemucs" in error.value.hint
    with pytest.raises(ModelError) as error:
        find("zzzz")
    assert "models list" in error.value.hint


@pytest.mark.parametrize(
    ("name", "twin"),
    [("mdx_q", "mdx"), ("mdx_extra_q", "mdx_extra"), ("6b9c2ca1", "0d19c1c6"), ("demucs_quantized", "demucs")],
)
def test_a_quantised_model_is_refused_and_its_twin_named(name: str, twin: str) -> None:
    with pytest.raises(ModelError, match="diffq") as error:
        find(name)
    assert error.value.hint.startswith(f"use {twin}")


def test_every_name_is_one_models_and_every_bag_has_its_members() -> None:
    entries = catalog()
    names = [name for entry in entries.values() for name in (entry.name, *entry.alias, *entry.quantised)]
    assert len(names) == len(set(names))
    for entry in entries.values():
        for vote in entry.bag:
            assert not find(vote.model).bag
            assert len(vote.weights) in (0, len(find(vote.model).sources))
        assert entry.parameters > 0 or entry.bag
        assert entry.about
        assert entry.paper or entry.bag or not entry.architecture


def test_a_bags_files_and_parameters_are_its_members() -> None:
    bag = find("mdx")
    assert len(all_files(bag)) == 4
    assert total_parameters(bag) == 2 * 88_984_040 + 83_607_872 + 83_884_248


def test_an_entry_goes_through_a_checkpoints_metadata_and_back() -> None:
    for entry in catalog().values():
        if not entry.bag:
            again = read_entry(entry.name, as_table(entry), "there")
            assert (again.settings, again.sources, again.level) == (
                dict(entry.settings),
                entry.sources,
                dict(entry.level),
            )
            assert again.training == dict(entry.training)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "sorces = []", "unknown key 'sorces'"),
        (GOOD + 'files = [{ url = "x", sha = "y" }]', "unknown key 'sha'"),
        (GOOD + 'files = [{ sha256 = "y" }]', "needs a url"),
        (GOOD.replace("segment = 1.0", ""), "needs architecture, sources, sample_rate and segment"),
        (GOOD + '[two]\nlike = "on"', "like = 'on': no table of this file; did you mean 'one'?"),
        (GOOD + '[two]\nlike = "one"\n[three]\nlike = "two"', "which is itself like 'one'"),
        ("one = 3", "must be a table"),
        ("[one", "cannot be read as a catalog"),
    ],
)
def test_what_a_catalog_cannot_be_is_told_with_file_table_and_key(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ModelError, match=words.split("'")[0].strip()) as error:
        read_catalog(path)
    assert str(path) in str(error.value)
    assert words in str(error.value)


def test_a_table_that_is_like_another_takes_what_it_lacks_but_no_names_and_no_files(tmp_path: Path) -> None:
    text = (
        GOOD
        + """
about = "one"
alias = ["uno"]
licence = "MIT"
settings = { hidden = 8, layers = 2 }
files = [{ url = "x" }]
[one.training]
loss = { name = "l1" }
stop = { epochs = 3 }
[two]
like = "one"
about = "two"
settings = { hidden = 16 }
[two.training]
loss = { name = "mse" }
"""
    )
    two = read_catalog(written(tmp_path, text))["two"]
    assert (two.architecture, two.sources, two.segment, two.about) == ("umx.OpenUnmix", ("a",), 1.0, "two")
    assert two.settings == {"hidden": 16, "layers": 2}
    assert two.training == {"loss": {"name": "mse"}, "stop": {"epochs": 3}}
    assert (two.alias, two.files, two.licence) == ((), (), "")


@pytest.mark.parametrize(("name", "bridging"), [("x-umx", "BP4"), ("x-d3net", "bands")], ids=["x-umx", "x-d3net"])
def test_the_ablation_of_the_x_scheme_is_of_loss_bridges_and_combinations(name: str, bridging: str) -> None:
    rows = {
        row: (entry.training["loss"]["name"], entry.settings["bridging"], "combinations" in entry.training["loss"])
        for row in ("c1", "c2", "c3", "c4", "c5", "c6", "c7", "p")
        for entry in [find(f"{name}-{row}")]
    }
    assert rows == {
        "c1": ("magnitude", "none", False),
        "c2": ("multi_domain", "none", False),
        "c3": ("magnitude", bridging, False),
        "c4": ("magnitude", "none", True),
        "c5": ("multi_domain", bridging, False),
        "c6": ("multi_domain", "none", True),
        "c7": ("magnitude", bridging, True),
        "p": ("multi_domain", bridging, True),
    }


def test_every_set_of_bridges_is_a_name() -> None:
    assert [find(f"x-umx-bp{i}").settings["bridging"] for i in range(1, 8)] == [f"BP{i}" for i in range(1, 8)]


def test_the_users_own_catalog_comes_after_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEPCLI_CACHE", str(tmp_path))
    written(tmp_path, GOOD + GOOD.replace("[one]", "[hdemucs_mmi]"))
    assert find("one").sample_rate == 8000
    assert find("hdemucs_mmi").sample_rate == 44100, "a shipped name keeps its meaning"


def test_the_default_may_be_used_for_everything_and_the_authors_research_weights_may_not() -> None:
    default = find(DEFAULT)
    assert default.commercial
    assert all(len(file.sha256) == 64 and file.bytes for file in default.files)
    for entry in catalog().values():
        if entry.commercial:
            assert re.search(r"weights: (MIT|CC0|Apache)", entry.licence), entry.name
        if "dl.fbaipublicfiles.com" in str(entry.files):
            assert not entry.commercial
            assert "scientific use" in entry.licence
    assert not find("scnet-xl").commercial


@pytest.mark.parametrize(
    ("name", "other"), [("cde-htcn", "scnet"), ("cws-unet", "cws-mdensenet"), ("multiband-m6", "multiband-m1")]
)
def test_without_published_weights_the_nearest_that_has_them_is_named(name: str, other: str) -> None:
    with pytest.raises(ModelError, match=f"{name} has no published weights") as error:
        require_weights(find(name))
    assert error.value.hint == f"use {other}, or train it with `sepcli train --model {name}`"
    require_weights(find("mdx"))
