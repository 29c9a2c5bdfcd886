"""Decide what each demonstration picture shows, and which tags that earns."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import dist
from random import Random
from typing import Any

import yaml

GENERAL, ARTIST, COPYRIGHT, CHARACTER, RATING = 0, 1, 3, 4, 9
CHARACTER_FRACTION = 0.25
MIN_COLOUR_DISTANCE = 50  # least distance between two colours of a picture, in RGB, of 441 at most


@dataclass(frozen=True)
class OptionRow:
    """Values of one option that look alike enough to earn the same tags."""

    tags: tuple[str, ...]
    hides: frozenset[str]  # options and tags that cannot be seen behind it
    weight: float
    values: tuple[str, ...]


@dataclass(frozen=True)
class Style:
    """A dicebear style: what each of its options may show."""

    name: str
    weight: float
    always: frozenset[str]
    options: Mapping[str, tuple[OptionRow, ...]]


@dataclass(frozen=True)
class Character:
    """A recurring look: whatever shows these values of these options is the character."""

    name: str
    style: str
    weight: float
    values: Mapping[str, str]


@dataclass(frozen=True)
class OptionTables:
    """All of `avatar_options.yaml`."""

    styles: Mapping[str, Style]
    characters: tuple[Character, ...]
    categories: Mapping[str, int]  # of every tag that is not general


@dataclass(frozen=True)
class AvatarOptions:
    """One picture: the value of every option, and the tags that are true of it."""

    style: str
    values: Mapping[str, str]
    tags: tuple[str, ...]


def choose_options(seed: int, image: int) -> AvatarOptions:
    """Return the look of one picture, which depends on these two numbers alone."""
    tables = load_tables()
    rng = Random(f"{seed} {image}")
    style, fixed = _subject(tables, rng)
    values = dict(fixed)
    rows = {}
    for option, choices in style.options.items():
        if option not in fixed:
            values[option] = _pick(rng, option, choices, values)
        rows[option] = _row(choices, values[option])
    names = (c.name for c in tables.characters if _shows(style.name, values, c))
    return AvatarOptions(
        style.name, values, tuple(sorted({*_visible(rows), *style.always, *names}))
    )


def tag_category(tag: str) -> int:
    """Return Danbooru's code for the category of a tag."""
    return load_tables().categories.get(tag, GENERAL)


def _subject(tables: OptionTables, rng: Random) -> tuple[Style, Mapping[str, str]]:
    """Choose a style, or a character and with it the values that make it."""
    if rng.random() < CHARACTER_FRACTION:
        weights = [c.weight for c in tables.characters]
        [character] = rng.choices(tables.characters, weights)
        return tables.styles[character.style], character.values
    styles = list(tables.styles.values())
    return rng.choices(styles, [style.weight for style in styles])[0], {}


def _pick(rng: Random, option: str, rows: Iterable[OptionRow], values: Mapping[str, str]) -> str:
    """Choose a value by weight: of a colour, one that stands out from those of `values`."""
    weights = {value: row.weight / len(row.values) for row in rows for value in row.values}
    if option.endswith("Color") and len(weights) > 1:
        others = [bytes.fromhex(v) for o, v in values.items() if o.endswith("Color")]
        weights = {v: w for v, w in weights.items() if _apart(v, others)} or weights
    [value] = rng.choices(list(weights), list(weights.values()))
    return values[value[1:]] if value.startswith("=") else value


def _apart(colour: str, others: Iterable[bytes]) -> bool:
    return all(dist(bytes.fromhex(colour), other) > MIN_COLOUR_DISTANCE for other in others)


def _row(rows: Iterable[OptionRow], value: str) -> OptionRow:
    """Return the row that holds the value; one copied from another option earns no tag."""
    nothing = OptionRow((), frozenset(), 1, (value,))
    return next((row for row in rows if value in row.values), nothing)


def _visible(rows: Mapping[str, OptionRow]) -> set[str]:
    hidden = frozenset[str]().union(*(row.hides for row in rows.values()))
    shown = {tag for option, row in rows.items() if option not in hidden for tag in row.tags}
    return shown - hidden


def _shows(style: str, values: Mapping[str, str], character: Character) -> bool:
    return style == character.style and character.values.items() <= values.items()


@cache
def load_tables() -> OptionTables:
    """Read the tables, once per process: it takes as long as drawing ten pictures."""
    text = (files("tagger.demo") / "avatar_options.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    groups = {name: frozenset(tags.split()) for name, tags in content["groups"].items()}
    common = {name: _rows(rows, groups) for name, rows in content["common"].items()}
    styles = {}
    categories = {"general": RATING}
    for name, entry in content["styles"].items():
        copyright_, artist = name.replace("-", "_"), entry.pop("artist")
        categories |= {copyright_: COPYRIGHT, artist: ARTIST}
        always = frozenset({"general", copyright_, artist, *entry.pop("always", "").split()})
        weight = entry.pop("weight")
        options = {option: _rows(rows, groups) for option, rows in entry.items()}
        others = {option: rows for option, rows in common.items() if option not in options}
        styles[name] = Style(name, weight, always, options | others)
    characters = tuple(_character(n, entry) for n, entry in content["characters"].items())
    return OptionTables(styles, characters, categories | {c.name: CHARACTER for c in characters})


def _rows(
    content: dict[str, str] | str, groups: Mapping[str, frozenset[str]]
) -> tuple[OptionRow, ...]:
    if isinstance(content, str):
        return (OptionRow((), frozenset(), 1, (content,)),)
    return tuple(_parse(key, values, groups) for key, values in content.items())


def _parse(key: str, values: str, groups: Mapping[str, frozenset[str]]) -> OptionRow:
    """Read `tags -hidden *weight: values`."""
    words = key.split()
    hidden = (word[1:] for word in words if word.startswith("-"))
    hides = frozenset[str]().union(*(groups.get(name, {name}) for name in hidden))
    weight = next((float(word[1:]) for word in words if word.startswith("*")), 1.0)
    tags = tuple(word for word in words if word[0] not in "-*")
    return OptionRow(tags, hides, weight, tuple(values.split()))


def _character(name: str, entry: dict[str, Any]) -> Character:
    return Character(name, entry.pop("style"), entry.pop("weight"), entry)
