"""The demonstration set: tags match the pixels, and the same seed gives the same images."""

import colorsys
import csv
import json
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tagger.demo import avatar_options, draw
from tagger.demo.avatar_options import AvatarOptions
from tagger.system import workers, world

Pixels = NDArray[np.uint8]  # (height, width, 4), red green blue alpha

IMAGES = 72
SIZE = 64

# First and last degree of hue. Brown, a dark orange, is missing.
HUES = {
    "red": (345, 375),
    "orange": (18, 35),
    "yellow": (40, 60),
    "green": (80, 160),
    "aqua": (178, 192),
    "blue": (205, 230),
    "purple": (250, 290),
    "pink": (322, 344),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "demo"
    draw.draw_images(folder, images=IMAGES, size=SIZE, seed=1)
    return folder


@pytest.fixture(scope="module")
def options() -> list[AvatarOptions]:
    return [avatar_options.choose_options(0, image) for image in range(3000)]


def images_with(folder: Path, *names: str) -> list[tuple[Pixels, set[str]]]:
    """Return the pixels and tags of the images with all these tags."""
    posts = [(pixels(path), tags(path)) for path in sorted(folder.glob("*.png"))]
    return [post for post in posts if post[1].issuperset(names)]


def pixels(path: Path) -> Pixels:
    return np.asarray(Image.open(path).convert("RGBA"))


def tags(path: Path) -> set[str]:
    return set(path.with_suffix(".txt").read_text(encoding="utf-8").strip().split(", "))


def has_hue(colour: NDArray[np.uint8], name: str) -> bool:
    first, last = HUES[name]
    hue, saturation, value = colorsys.rgb_to_hsv(*(colour[:3] / 255))
    return (
        saturation > 0.2 and value > 0.3 and any(first <= hue * 360 + k <= last for k in (0, 360))
    )


def fraction_of_hue(image: Pixels, name: str) -> float:
    return float(np.mean([has_hue(colour, name) for colour in image[::2, ::2].reshape(-1, 4)]))


def most_frequent_border_colour(image: Pixels) -> NDArray[np.uint8]:
    border = np.concatenate([image[0], image[:, 0], image[:, -1]])
    colours, counts = np.unique(border, axis=0, return_counts=True)
    return np.asarray(colours[counts.argmax()])


def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cores in (1, 3):
        monkeypatch.setattr(world, "available_cores", lambda n=cores: n)
        draw.draw_images(tmp_path / str(cores), images=6, size=32, seed=5)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("1", "3"))
    assert first == second
    assert sorted(first) == sorted(
        [f"000{i}.{end}" for i in range(6) for end in ("png", "txt")] + ["tags.csv"]
    )


def test_another_seed_gives_other_images() -> None:
    assert [avatar_options.choose_options(1, i) for i in range(9)] != [
        avatar_options.choose_options(2, i) for i in range(9)
    ]


def test_interrupted_drawing_leaves_the_previous_set_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "0000.txt").write_text("general\n")
    monkeypatch.setattr(workers, "run_tasks", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw.draw_images(folder, images=3, size=16, seed=0)
    assert [path.name for path in tmp_path.rglob("*")] == ["demo", "0000.txt"]


def test_images_have_the_given_size_and_one_line_of_tags(folder: Path) -> None:
    images = sorted(folder.glob("*.png"))
    assert [path.stem for path in images] == [f"{i:04}" for i in range(IMAGES)]
    for path in images:
        text = path.with_suffix(".txt").read_bytes().decode("utf-8")
        names = text.removesuffix("\n").split(", ")
        assert pixels(path).shape == (SIZE, SIZE, 4)
        assert text.count("\n") == 1
        assert len(set(names)) == len(names)
        assert all(name == name.strip().lower() and " " not in name for name in names)


def test_tags_csv_lists_the_tags_of_all_sidecars(folder: Path) -> None:
    with (folder / "tags.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["name", "category"]
    assert {name for name, _ in rows} == set().union(*(t for _, t in images_with(folder)))
    assert {code for _, code in rows} == {"0", "1", "3", "4", "9"}


def test_every_image_has_one_rating_one_style_and_one_artist(options: list[AvatarOptions]) -> None:
    for avatar in options:
        codes = Counter(avatar_options.tag_category(tag) for tag in avatar.tags)
        assert (codes[9], codes[3], codes[1]) == (1, 1, 1)
        assert codes[4] <= 1


def test_plain_backgrounds_have_the_colour_of_their_tag(folder: Path) -> None:
    checked = 0
    for name in HUES:
        for image, _ in images_with(folder, "simple_background", f"{name}_background"):
            assert has_hue(most_frequent_border_colour(image), name)
            checked += 1
    assert checked > 20


def test_hair_has_the_colour_of_its_tag(folder: Path) -> None:
    checked = 0
    for name in HUES:
        for image, names in images_with(folder, f"{name}_hair"):
            if f"{name}_background" not in names:
                assert fraction_of_hue(image, name) > 0.02
                checked += 1
    assert checked > 10


def test_transparent_backgrounds_have_no_colour(folder: Path) -> None:
    for image, names in images_with(folder):
        grounds = {name for name in names if name.endswith("_background")}
        transparent = grounds == {"transparent_background"}
        assert (image[0, 0, 3] == 0) == transparent
        assert transparent or "transparent_background" not in grounds


def test_greyscale_images_are_grey_and_have_no_colour_tags(
    folder: Path, options: list[AvatarOptions]
) -> None:
    for image, _ in images_with(folder, "greyscale"):
        assert np.ptp(image[..., :3].astype(int), axis=-1).max() <= 2
    for avatar in options:
        if "greyscale" in avatar.tags:
            assert not any(tag.startswith(tuple(HUES)) for tag in avatar.tags)


@pytest.mark.parametrize(
    ("cover", "covered"),
    [
        ("sunglasses", {"closed_eyes", "one_eye_closed", "wide-eyed", "heart-shaped_pupils"}),
        ("sleep_mask", {"closed_eyes", "one_eye_closed", "star-shaped_pupils"}),
        ("mouth_mask", {"smile", "open_mouth", "frown", "teeth", "beard", "mustache"}),
        ("bald", {f"{name}_hair" for name in (*HUES, "black", "long", "short", "curly")}),
        ("baseball_cap", {f"{name}_hair" for name in (*HUES, "black", "long", "short", "curly")}),
        ("transparent_background", {"white_background", "simple_background"}),
    ],
)
def test_covered_parts_have_no_tag(
    options: list[AvatarOptions], cover: str, covered: set[str]
) -> None:
    covering = [avatar for avatar in options if cover in avatar.tags]
    assert covering
    assert not [avatar for avatar in covering if covered & set(avatar.tags)]


def test_images_that_show_a_character_have_its_tag(options: list[AvatarOptions]) -> None:
    for character in avatar_options.load_tables().characters:
        drawn = {i for i, avatar in enumerate(options) if character.name in avatar.tags}
        alike = {
            i
            for i, avatar in enumerate(options)
            if avatar.style == character.style and character.values.items() <= avatar.values.items()
        }
        assert drawn == alike


def test_tags_are_many_and_have_a_long_tail(options: list[AvatarOptions]) -> None:
    counts = Counter(tag for avatar in options for tag in avatar.tags)
    codes = Counter(avatar_options.tag_category(tag) for tag in counts)
    assert 130 <= len(counts) <= 190
    assert sum(count >= 30 for count in counts.values()) >= 125
    assert sum(count < 30 for count in counts.values()) >= 10
    assert min(counts.values()) >= 8
    assert codes[3] >= 8
    assert 16 <= codes[4] <= 24


def test_a_quarter_of_the_images_shows_a_character(options: list[AvatarOptions]) -> None:
    shown = [
        any(avatar_options.tag_category(tag) == 4 for tag in avatar.tags) for avatar in options
    ]
    assert 0.2 < np.mean(shown) < 0.3


def test_styles_do_not_depend_on_the_order_of_images(options: list[AvatarOptions]) -> None:
    first, second = (
        Counter(avatar.style for avatar in half) for half in (options[:1500], options[1500:])
    )
    assert all(
        0.6 < first[style] / second[style] < 1.6 for style in avatar_options.load_tables().styles
    )


@pytest.mark.parametrize("style", avatar_options.load_tables().styles)
def test_styles_have_every_value_of_the_tables(style: str) -> None:
    definition = json.loads((files("dicebear_styles") / f"{style}.json").read_bytes())
    for option, rows in avatar_options.load_tables().styles[style].options.items():
        values = {value for row in rows for value in row.values} - {"none"}
        if option in definition["components"]:
            assert values <= definition["components"][option]["variants"].keys()
        else:
            colours = {f"{name}Color" for name in definition["colors"]}
            assert option in colours | {"pose", "finish", "background", "backgroundColor"}


@pytest.mark.parametrize("style", avatar_options.load_tables().styles)
def test_tables_decide_all_optional_parts(style: str) -> None:
    definition = json.loads((files("dicebear_styles") / f"{style}.json").read_bytes())
    parts = definition["components"].items()
    optional = {name for name, part in parts if part.get("probability", 100) < 100}
    assert optional <= avatar_options.load_tables().styles[style].options.keys()
