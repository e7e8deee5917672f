"""How a model is trained: the table [NAME.training] of the catalog as checked, frozen data.

Every word that a recipe may use is a field below; any other is refused by name, with the nearest.
"""

import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar

from sepcli.errors import UsageError
from sepcli.models import fits
from sepcli.weights.catalog import nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Data:
    """What an epoch is made of.

    `excerpt`: seconds that the network sees at once; what a shift or another tempo needs is read in addition. `batch`:
    excerpts of one optimiser step, over all processes. `split`: "musdb18" lets that data set's 14 published songs
    validate. An epoch has an excerpt every `stride` seconds of each song or, with `draws`, that many of each song at
    random places. `weights`: songs below a folder of this name are mixed in so many times as often as others.
    """

    excerpt: float
    batch: int
    split: Literal["", "musdb18"] = ""
    stride: float = 1.0
    draws: int = 0
    weights: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Repitch:
    """With probability `chance` another pitch (whole `semitones`, up or down) and another tempo, for all sources alike.

    Changes of tempo are normal with `deviation` per cent, clipped at `tempo` per cent.
    """

    chance: float = 0.2
    tempo: float = 12.0
    semitones: int = 2
    deviation: float = 5.0


@dataclass(frozen=True)
class Vary:
    """Each source of an excerpt played in another way, with probability `chance` for each change.

    `speed`: up to so many semitones faster or slower, pitch and tempo together. `equaliser`: decibels up or down at
    each of some octaves. `width`: range of a factor of the difference between the channels. `pan`: decibels to
    one side. `reverb`: longest time to fall by 60 dB, in seconds. 0 leaves that change out.
    """

    chance: float = 0.5
    speed: float = 0.0
    equaliser: float = 0.0
    width: tuple[float, float] = (1.0, 1.0)
    pan: float = 0.0
    reverb: float = 0.0


@dataclass(frozen=True)
class Augment:
    """What is done to the stems before they are summed; each draw is per item and source unless said otherwise.

    `mix`: each source from a song and place of its own, but for a share `intact` of the items, which stay one song.
    `even`: sources that are mixed are brought to one loudness before. `vary`: see there. `gain`: range in decibels of
    a factor. `drop`: probability that a source is silent. `shift`: up to so many seconds, `together` the same for all
    sources. `swap`, `sign`: probabilities that the channels are reversed, the sign is. `scale`: range of a factor.
    `peak`: every excerpt is brought to this largest signed sample, silence excepted. `remix`: sources are permuted
    within groups of so many items. `mono`: probability that all sources of an item, and so its mixture, are mono:
    every channel is their mean.
    """

    mix: bool = False
    intact: float = 0.0
    even: bool = False
    vary: Vary | None = None
    gain: tuple[float, float] = (0.0, 0.0)
    drop: float = 0.0
    repitch: Repitch | None = None
    shift: float = 0.0
    together: bool = False
    swap: float = 0.0
    sign: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    peak: float = 0.0
    remix: int = 1
    mono: float = 0.0


LossName = Literal["l1", "mse", "cws", "magnitude", "multi_domain", "spectral_rmse", "multi_stft", "sdr"]


@dataclass(frozen=True)
class Loss:
    """One term of the loss, see losses.py; `weight` is its factor in a sum of several.

    `weights`: of the sources, by name (the others have 1). `stages`: the earlier stages count too. `combinations`: over
    the sums of all proper subsets of the sources. `alpha`: of the time part of multi_domain. `trim`: samples that its
    time part leaves out at either end. `floor`: of sdr, share of the mixture's energy. `windows`, `hop`: of multi_stft,
    in samples. `reduction`: "paper" sums where the papers print sums.
    """

    name: LossName
    weight: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)
    stages: bool = False
    combinations: bool = False
    alpha: float = 10.0
    floor: float = 0.05
    trim: int = 0
    windows: tuple[int, ...] = (4096, 2048, 1024, 512, 256)
    hop: int = 147
    reduction: Literal["mean", "paper"] = "mean"


@dataclass(frozen=True)
class Optimiser:
    """`decay`: weight decay; `clip`: largest norm of all gradients (0: any); `accumulate`: parts of a batch in turn."""

    name: Literal["adam", "adamw"] = "adam"
    rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    decay: float = 0.0
    clip: float = 0.0
    accumulate: int = 1


@dataclass(frozen=True)
class Schedule:
    """The learning rate over time.

    "step": times `factor` every so many hours of sound or steps. "milestones": from each of `epochs` on, the first rate
    times the one of `factors`. "plateau": times `factor` when `patience` validations in a row were no better, then not
    again for `cooldown`. "cosine": up over `warmup` steps, then down to nothing at the last step.
    """

    name: Literal["constant", "step", "milestones", "plateau", "cosine"] = "constant"
    every_hours: float = 0.0
    every_steps: int = 0
    factor: float = 1.0
    epochs: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()
    patience: int = 0
    cooldown: int = 0
    warmup: int = 0


@dataclass(frozen=True)
class Penalty:
    """`weight` times the squared largest singular values of all weights of `min_size` times 2^18 values or more.

    `dimensions`, `iterations`: of the randomised decomposition. `transposed`: transposed convolutions as (out, in).
    """

    name: Literal["svd"] = "svd"
    weight: float = 0.0
    min_size: float = 1.0
    dimensions: int = 100
    iterations: int = 4
    transposed: bool = True
    convolutions_only: bool = False


@dataclass(frozen=True)
class Ema:
    """Decays of the running averages of the weights that are updated after each step, and after each epoch."""

    steps: tuple[float, ...] = ()
    epochs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Stop:
    """When it ends (0: not for this reason): `patience` counts validations without a better `measure`.

    Validation comes after each epoch or, with `validate_hours`, each time so much sound was heard, and at the end.
    """

    epochs: int = 0
    steps: int = 0
    patience: int = 0
    validate_hours: float = 0.0
    measure: Literal["loss", "nsdr"] = "loss"


@dataclass(frozen=True)
class Start:
    """Weights to begin with: those `parts` (all, if none is named) of the model `from`.

    `freeze`: they stay as they are. `sort`: a Conv-TasNet's front end with its filters from low to high.
    """

    model: str
    parts: tuple[str, ...] = ()
    freeze: bool = False
    sort: bool = False


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. `loss` is one term or several."""

    data: Data
    loss: tuple[Loss, ...]
    stop: Stop
    augment: Augment = field(default_factory=Augment)
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    penalty: Penalty = field(default_factory=Penalty)
    ema: Ema = field(default_factory=Ema)
    start: Start | None = None

    @property
    def read_seconds(self) -> float:
        """Seconds of a song that one excerpt is made of, before shift and tempo take theirs."""
        tempo = self.augment.repitch.tempo if self.augment.repitch else 0.0
        speed = 2 ** (self.augment.vary.speed / 12) if self.augment.vary else 1.0
        return (self.data.excerpt + self.augment.shift) * speed / (1 - tempo / 100)

    @property
    def hours_a_step(self) -> float:
        """Hours of sound that the network hears in one step."""
        return self.data.batch * self.data.excerpt / 3600


def read_recipe(table: Mapping[str, Any], name: str) -> Recipe:
    """The recipe in an entry's training table. Raises UsageError naming the word, its value and what is allowed."""
    if not table:
        raise UsageError(f"{name} has no recipe", "see `sepcli models list` for the names that can be trained")
    recipe = _read(Recipe, table, f"{name}.training")
    check(recipe)
    return recipe


def as_table(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data that read_recipe takes back: what differs from the defaults."""
    table: dict[str, Any] = {}
    for item in fields(recipe):
        value = getattr(recipe, item.name)
        if item.name == "loss":
            terms = [_plain(term) for term in value]
            table["loss"] = terms[0] if len(terms) == 1 else terms
        elif value is not None and (plain := _plain(value)):
            table[item.name] = plain
    return table


def with_values(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A training table with words over it: {"optimiser.rate": 1e-4}, or whole tables: {"stop": {…}}. UsageError."""
    changed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in table.items()}
    for word, value in changes.items():
        section, _, key = word.partition(".")
        known = [item.name for item in fields(Recipe)]
        if section not in known:
            raise UsageError(f"{word}: a recipe has no {section!r}", nearest(section, known))
        if not key:
            changed[section] = value
            continue
        target = changed.setdefault(section, {})
        *path, last = key.split(".")
        for step in path:
            target = target.setdefault(step, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise UsageError(f"{word}: cannot be set in a list", "write --loss for a loss of several terms")
        target[last] = value
    return changed


def parse_loss(text: str) -> dict[str, Any] | list[dict[str, Any]]:
    """`--loss`: terms joined by +, each NAME, FACTOR*NAME or NAME:word=value,…; "l1+0.1*magnitude:combinations=true".

    Raises UsageError for what is none.
    """
    terms = []
    for part in text.split("+"):
        head, _, words = part.strip().partition(":")
        factor, star, name = head.rpartition("*")
        term: dict[str, Any] = {"name": name.strip()}
        if star:
            term["weight"] = parse_value(factor.strip())
        for word in filter(None, words.split(",")):
            key, equals, value = word.partition("=")
            if not equals:
                raise UsageError(f"--loss {text}: {word!r} is not word=value")
            term[key.strip()] = parse_value(value.strip())
        terms.append(term)
    return terms[0] if len(terms) == 1 else terms


def parse_value(text: str) -> Any:
    """A value as TOML writes it; what is none is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def check(recipe: Recipe) -> None:
    """Refuse what cannot be. Raises UsageError."""
    data, augment, optimiser, schedule, stop = (
        recipe.data, recipe.augment, recipe.optimiser, recipe.schedule, recipe.stop
    )  # fmt: skip
    above = {"data.excerpt": data.excerpt, "data.stride": data.stride, "optimiser.rate": optimiser.rate}
    for name, value in above.items():
        if not 0 < value < float("inf"):
            raise UsageError(f"{name} = {value}: must be above 0")
    at_least_one = {"data.batch": data.batch, "augment.remix": augment.remix, "accumulate": optimiser.accumulate}
    for name, count in at_least_one.items():
        if count < 1:
            raise UsageError(f"{name} = {count}: must be at least 1")
    if min(data.weights.values(), default=1) < 1:
        raise UsageError(f"data.weights = {dict(data.weights)}: must be 1 or more")
    chances = {"augment.swap": augment.swap, "augment.sign": augment.sign}
    chances |= {"augment.intact": augment.intact, "augment.drop": augment.drop, "augment.mono": augment.mono}
    if vary := augment.vary:
        chances["augment.vary.chance"] = vary.chance
        if min(vary.speed, vary.equaliser, vary.pan, vary.reverb) < 0 or not 0 <= vary.width[0] <= vary.width[1]:
            raise UsageError(f"augment.vary = {vary}: must have nothing below 0, and width as [low, high]")
    if augment.gain[0] > augment.gain[1]:
        raise UsageError(f"augment.gain = {list(augment.gain)}: must be [low, high]")
    if augment.repitch:
        chances["augment.repitch.chance"] = augment.repitch.chance
        if not 0 <= augment.repitch.tempo < 50:
            raise UsageError(f"augment.repitch.tempo = {augment.repitch.tempo}: must be from 0 to below 50")
    for name, value in chances.items():
        if not 0 <= value <= 1:
            raise UsageError(f"{name} = {value}: must be from 0 to 1")
    if augment.shift < 0:
        raise UsageError(f"augment.shift = {augment.shift}: must be 0 or more")
    if not 0 < augment.scale[0] <= augment.scale[1]:
        raise UsageError(f"augment.scale = {list(augment.scale)}: must be [low, high] above 0")
    if data.batch % (augment.remix * optimiser.accumulate):
        what = f"batch = {data.batch}: must be a multiple of {augment.remix * optimiser.accumulate}"
        raise UsageError(f"{what} (remix in groups of {augment.remix}, {optimiser.accumulate} parts)")
    if any(not 0 <= beta < 1 for beta in (*optimiser.betas, *recipe.ema.steps, *recipe.ema.epochs)):
        raise UsageError("betas and averages' decays must be from 0 to below 1")
    if schedule.name == "step" and (schedule.every_hours > 0) == (schedule.every_steps > 0):
        raise UsageError("schedule step: needs every_hours or every_steps")
    if schedule.name == "milestones" and (not schedule.epochs or len(schedule.epochs) != len(schedule.factors)):
        raise UsageError("schedule milestones: needs epochs, and as many factors")
    if schedule.name == "plateau" and (schedule.patience < 1 or not 0 < schedule.factor < 1):
        raise UsageError("schedule plateau: needs a patience of at least 1 and a factor between 0 and 1")
    if schedule.name == "cosine" and not (stop.epochs or stop.steps):
        raise UsageError("schedule cosine: needs a last step to fall to", "give --epochs or --steps")
    if min(stop.epochs, stop.steps, stop.patience, stop.validate_hours) < 0:
        raise UsageError("stop: epochs, steps, patience and validate_hours must be 0 or more")
    if not (stop.epochs or stop.steps or stop.patience):
        raise UsageError("stop: needs epochs, steps or patience", "give --epochs or --steps")
    for term in recipe.loss:
        if term.name == "cws" and (term.combinations or term.weights):
            raise UsageError("loss cws: has its own combination, the sum of all sources; no combinations, no weights")
        if term.combinations and (term.weights or term.stages):
            raise UsageError("loss: combinations go with neither weights nor stages")
        if term.stages and term.name not in ("l1", "mse"):
            raise UsageError(f"loss {term.name}: stages have waveforms only", "use l1 or mse")


def as_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of plain data as TOML text."""
    lines = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{_key(key)} = {_toml(value)}" for key, value in table.items()]
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    escaped = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return f'"{escaped}"'


def _key(key: str) -> str:
    plain = key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key)
    return key if plain else _toml(key)


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as a table of what differs from its defaults."""
    table: dict[str, Any] = {}
    for item in fields(value):
        found = getattr(value, item.name)
        if found == item.default or found == {}:
            continue
        plain = _plain(found) if is_dataclass(found) else list(found) if isinstance(found, tuple) else found
        table[_word(item.name, type(value))] = plain
    return table


def _word(field_name: str, kind: type) -> str:
    """`from` cannot be the name of a field."""
    return "from" if kind is Start and field_name == "model" else field_name


def _read(kind: type[T], table: Any, place: str) -> T:
    """A table as a dataclass: names and types checked, tables within read alike. Raises UsageError."""
    if not isinstance(table, Mapping):
        raise UsageError(f"{place} = {table!r}: must be a table")
    hints = typing.get_type_hints(kind)
    known = {_word(item.name, kind): item for item in fields(kind)}  # type: ignore[arg-type]
    if kind is Start and "from" not in table:
        raise UsageError(f"{place}: parts, freeze and sort need `from`, a model whose weights they are")
    values: dict[str, Any] = {}
    for word, value in table.items():
        if word not in known:
            raise UsageError(f"{place}.{word}: is no word of a recipe", nearest(word, known))
        name = known[word].name
        values[name] = _value(hints[name], value, f"{place}.{word}")
    missing = [word for word, item in known.items() if word not in table and _required(item)]
    if missing:
        raise UsageError(f"{place}: lacks {', '.join(missing)}")
    return kind(**values)


def _required(item: "Field[Any]") -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _value(hint: Any, value: Any, place: str) -> Any:
    nested = [kind for kind in (hint, *typing.get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)]
    if nested and typing.get_origin(hint) is tuple:  # one table, or several
        several = value if isinstance(value, list | tuple) else [value]
        return tuple(_read(nested[0], item, place) for item in several)
    if nested:
        return _read(nested[0], value, place)
    if not fits(value, hint):
        allowed = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        names = ", ".join(repr(option) for option in allowed if option != "")
        wanted = f"one of {names}" if names else getattr(hint, "__name__", str(hint))
        raise UsageError(f"{place} = {value!r}: must be {wanted}")
    return tuple(value) if isinstance(value, list) else value
