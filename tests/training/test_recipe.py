"""Recipes: every entry's is read, and what is no word of a recipe is refused by name."""

import tomllib
from typing import Any

import pytest

from sepcli.errors import UsageError
from sepcli.models import find
from sepcli.training.losses import make_loss
from sepcli.training.recipe import Recipe, as_table, as_toml, parse_loss, read_recipe, with_values
from sepcli.weights.catalog import Entry, catalog

TRAINED = {name: entry for name, entry in catalog().items() if entry.training}
PLAIN: dict[str, Any] = {"data": {"excerpt": 1.0, "batch": 4}, "loss": {"name": "l1"}, "stop": {"epochs": 1}}


@pytest.mark.parametrize("entry", TRAINED.values(), ids=TRAINED.keys())
def test_every_entrys_recipe_is_read_and_written_back(entry: Entry) -> None:
    recipe = read_recipe(entry.training, entry.name)
    assert read_recipe(as_table(recipe), entry.name) == recipe
    text = as_toml({f"{entry.name}.training": as_table(recipe)})
    assert read_recipe(tomllib.loads(text)[entry.name]["training"], entry.name) == recipe
    make_loss(recipe.loss, entry.sources)
    assert recipe.start is None or find(catalog()[recipe.start.model].architecture) is find(entry.architecture)


def test_every_paper_can_be_trained() -> None:
    families = {entry.architecture.split(".")[0] for entry in TRAINED.values()}
    assert families >= {"hdemucs", "demucs", "conv_tasnet", "cde_htcn", "cws_unet", "densenet", "umx", "d3net", "scnet"}


def test_hybrid_demucs_reads_eleven_seconds_for_its_excerpt() -> None:
    recipe = read_recipe(catalog()["hdemucs-paper"].training, "hdemucs-paper")
    assert round(recipe.data.excerpt * 44100) == 382_788
    assert round(recipe.read_seconds * 44100) == 11 * 44100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data.excerp": 1.0}, ["data.excerp", "'excerpt'"]),
        ({"augment.flip": True}, ["augment.flip"]),
        ({"optimizer.rate": 1.0}, ["optimizer", "'optimiser'"]),
        ({"data.batch": 2.5}, ["data.batch", "2.5", "int"]),
        ({"loss.name": "l2"}, ["loss.name", "'l2'", "'multi_domain'"]),
        ({"data.excerpt": -1.0}, ["data.excerpt", "-1.0"]),
        ({"augment.remix": 3}, ["batch = 4", "multiple of 3"]),
        ({"augment.swap": 1.5}, ["augment.swap", "1.5"]),
        ({"augment.scale": [1.0, 0.5]}, ["augment.scale"]),
        ({"augment.gain": [1.0, 0.5]}, ["augment.gain"]),
        ({"augment.intact": 2.0}, ["augment.intact", "2.0"]),
        ({"augment.vary.chance": 2.0}, ["augment.vary.chance", "2.0"]),
        ({"augment.vary.width": [1.0, 0.5]}, ["augment.vary", "width"]),
        ({"data.weights": {"real": 0}}, ["data.weights", "0"]),
        ({"schedule.name": "milestones"}, ["milestones", "epochs"]),
        ({"schedule.name": "step"}, ["every_hours"]),
        ({"stop.epochs": 0}, ["stop", "--epochs"]),
        ({"schedule.name": "cosine", "stop": {"patience": 3}}, ["cosine", "--epochs"]),
        ({"start.freeze": True}, ["start", "from"]),
        ({"start.sort": True}, ["start", "from"]),
        ({"loss.name": "cws", "loss.combinations": True}, ["cws", "combinations"]),
        ({"loss.combinations": True, "loss.stages": True}, ["combinations", "stages"]),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        read_recipe(with_values(PLAIN, change), "x")
    for word in words:
        assert word in str(caught.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match=r"x.training.data: lacks excerpt"):
        read_recipe({**PLAIN, "data": {"batch": 1}}, "x")
    with pytest.raises(UsageError, match="x has no recipe"):
        read_recipe({}, "x")


def test_dotted_words_reach_tables_within_tables() -> None:
    table = with_values(PLAIN, {"augment.repitch.chance": 0.5, "optimiser.rate": 1e-4})
    recipe = read_recipe(table, "x")
    assert recipe.augment.repitch is not None
    assert recipe.augment.repitch.chance == 0.5
    assert recipe.optimiser.rate == 1e-4
    assert "augment" not in PLAIN, "the entry's own table stays as it is"


def test_a_loss_is_written_in_one_word() -> None:
    assert parse_loss("l1") == {"name": "l1"}
    assert parse_loss("l1+0.1*multi_domain:combinations=true,alpha=3") == [
        {"name": "l1"},
        {"name": "multi_domain", "weight": 0.1, "combinations": True, "alpha": 3},
    ]
    recipe: Recipe = read_recipe({**PLAIN, "loss": parse_loss("1e-1*mse+cws")}, "x")
    assert [(term.name, term.weight) for term in recipe.loss] == [("mse", 0.1), ("cws", 1.0)]
    with pytest.raises(UsageError, match="alpha"):
        parse_loss("multi_domain:alpha")
