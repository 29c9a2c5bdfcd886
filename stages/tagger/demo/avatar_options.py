"""The avatar options of each demonstration image, and the tags that follow from them."""

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
MIN_COLOUR_DISTANCE = 50  # between two colours of an image, in RGB, of 441 at most


@dataclass(frozen=True)
class OptionRow:
    """Values of an option that look similar and have the same tags."""

    tags: tuple[str, ...]
    hides: frozenset[str]  # options and tags that are invisible behind it
    weight: float
    values: tuple[str, ...]


@dataclass(frozen=True)
class Style:
    """A dicebear style with the possible values of its options."""

    name: str
    weight: float
    always: frozenset[str]
    options: Mapping[str, tuple[OptionRow, ...]]


@dataclass(frozen=True)
class Character:
    """A recurring character: any image with these values of these options shows it."""

    name: str
    style: str
    weight: float
    values: Mapping[str, str]


@dataclass(frozen=True)
class OptionTables:
    """The content of `avatar_options.yaml`."""

    styles: Mapping[str, Style]
    characters: tuple[Character, ...]
    categories: Mapping[str, int]  # of tags that are not general


@dataclass(frozen=True)
class AvatarOptions:
    """The value of every option of an image, and its tags."""

    style: str
    values: Mapping[str, str]
    tags: tuple[str, ...]


def choose_options(seed: int, image: int) -> AvatarOptions:
    """Return the options of an image. They depend on the two numbers only."""
    tables = load_tables()
    rng = Random(f"{seed} {image}")
    style, fixed = _choose_subject(tables, rng)
    values = dict(fixed)
    rows = {}
    for option, choices in style.options.items():
        if option not in fixed:
            values[option] = _choose_value(rng, option, choices, values)
        rows[option] = _row(choices, values[option])
    names = (c.name for c in tables.characters if _shows(style.name, values, c))
    return AvatarOptions(
        style.name, values, tuple(sorted({*_visible_tags(rows), *style.always, *names}))
    )


def tag_category(tag: str) -> int:
    """Return Danbooru's code for the category of a tag."""
    return load_tables().categories.get(tag, GENERAL)


def _choose_subject(tables: OptionTables, rng: Random) -> tuple[Style, Mapping[str, str]]:
    """Choose a style, or a character with the values that define it."""
    if rng.random() < CHARACTER_FRACTION:
        weights = [c.weight for c in tables.characters]
        [character] = rng.choices(tables.characters, weights)
        return tables.styles[character.style], character.values
    styles = list(tables.styles.values())
    return rng.choices(styles, [style.weight for style in styles])[0], {}


def _choose_value(
    rng: Random, option: str, rows: Iterable[OptionRow], values: Mapping[str, str]
) -> str:
    """Choose a value by weight. A colour must stand out from the colours in `values`."""
    weights = {value: row.weight / len(row.values) for row in rows for value in row.values}
    if option.endswith("Color") and len(weights) > 1:
        others = [bytes.fromhex(v) for o, v in values.items() if o.endswith("Color")]
        weights = {v: w for v, w in weights.items() if _stands_out(v, others)} or weights
    [value] = rng.choices(list(weights), list(weights.values()))
    return values[value[1:]] if value.startswith("=") else value


def _stands_out(colour: str, others: Iterable[bytes]) -> bool:
    return all(dist(bytes.fromhex(colour), other) > MIN_COLOUR_DISTANCE for other in others)


def _row(rows: Iterable[OptionRow], value: str) -> OptionRow:
    """Return the row of a value. A value copied from another option has no tags."""
    without_tags = OptionRow((), frozenset(), 1, (value,))
    return next((row for row in rows if value in row.values), without_tags)


def _visible_tags(rows: Mapping[str, OptionRow]) -> set[str]:
    hidden = frozenset[str]().union(*(row.hides for row in rows.values()))
    tags = {tag for option, row in rows.items() if option not in hidden for tag in row.tags}
    return tags - hidden


def _shows(style: str, values: Mapping[str, str], character: Character) -> bool:
    return style == character.style and character.values.items() <= values.items()


@cache
def load_tables() -> OptionTables:
    """Read the tables once per process: it takes as long as ten drawings."""
    text = (files("tagger.demo") / "avatar_options.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    groups = {name: frozenset(tags.split()) for name, tags in content["groups"].items()}
    common = {name: _parse_rows(rows, groups) for name, rows in content["common"].items()}
    styles = {}
    categories = {"general": RATING}
    for name, entry in content["styles"].items():
        copyright_, artist = name.replace("-", "_"), entry.pop("artist")
        categories |= {copyright_: COPYRIGHT, artist: ARTIST}
        always = frozenset({"general", copyright_, artist, *entry.pop("always", "").split()})
        weight = entry.pop("weight")
        options = {option: _parse_rows(rows, groups) for option, rows in entry.items()}
        others = {option: rows for option, rows in common.items() if option not in options}
        styles[name] = Style(name, weight, always, options | others)
    characters = tuple(_parse_character(n, entry) for n, entry in content["characters"].items())
    return OptionTables(styles, characters, categories | {c.name: CHARACTER for c in characters})


def _parse_rows(
    content: dict[str, str] | str, groups: Mapping[str, frozenset[str]]
) -> tuple[OptionRow, ...]:
    if isinstance(content, str):
        return (OptionRow((), frozenset(), 1, (content,)),)
    return tuple(_parse_row(key, values, groups) for key, values in content.items())


def _parse_row(key: str, values: str, groups: Mapping[str, frozenset[str]]) -> OptionRow:
    """Read `tags -hidden *weight: values`."""
    words = key.split()
    hidden = (word[1:] for word in words if word.startswith("-"))
    hides = frozenset[str]().union(*(groups.get(name, {name}) for name in hidden))
    weight = next((float(word[1:]) for word in words if word.startswith("*")), 1.0)
    tags = tuple(word for word in words if word[0] not in "-*")
    return OptionRow(tags, hides, weight, tuple(values.split()))


def _parse_character(name: str, entry: dict[str, Any]) -> Character:
    return Character(name, entry.pop("style"), entry.pop("weight"), entry)
