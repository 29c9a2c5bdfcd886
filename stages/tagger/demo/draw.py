"""Draw the demonstration set: images drawn from their tags."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import resvg_py
from dicebear import Avatar, Style

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.demo import avatar_options
from tagger.demo.avatar_options import AvatarOptions
from tagger.system import progress, workers, world
from tagger.system.worker_loop import Begin

DrawingJob = tuple[str, AvatarOptions]  # file name without suffix, and what to draw

CANVAS = 100  # user units of the SVG, for any number of pixels

POSES: dict[str, dict[str, Any]] = {
    "upright": {},
    "mirrored": {"flip": "horizontal"},
    "upside_down": {"flip": "vertical"},
    "leaning_left": {"rotate": [-45, -28]},
    "leaning_right": {"rotate": [28, 45]},
}

PLAIN = '<rect width="100" height="100" fill="#{colour}"/>'
OVERLAY = '<rect width="100" height="100" fill="url(#overlay)"/>'
BACKGROUNDS = {
    "plain": PLAIN,
    "transparent": "",
    "gradient": PLAIN
    + '<linearGradient id="overlay" x2="0" y2="1"><stop stop-color="{shade}" stop-opacity="0"/>'
    + f'<stop offset="1" stop-color="{{shade}}" stop-opacity=".7"/></linearGradient>{OVERLAY}',
    "striped": PLAIN
    + '<path d="M-84-5l110 110M-56-5l110 110M-28-5l110 110M0-5l110 110M28-5l110 110M56-5l110 110'
    + 'M84-5l110 110M-112-5l110 110" stroke="{shade}" stroke-width="10" opacity=".5"/>',
}

FINISHES = {
    "full_colour": "",
    "greyscale": '<feColorMatrix type="saturate" values="0"/>',
}


def draw_images(folder: Path, *, images: int, size: int, seed: int) -> dict[str, int]:
    """Draw images of `size` x `size` pixels with sidecars and tags.csv; return images per tag.

    A folder that exists is replaced after the last drawing. The same arguments give the same bytes.
    """
    digits = max(4, len(str(images - 1)))
    jobs = [(f"{i:0{digits}}", avatar_options.choose_options(seed, i)) for i in range(images)]
    counts = Counter(tag for _, options in jobs for tag in options.tags)
    with files.atomic_write(folder) as unfinished:
        unfinished.mkdir()
        _draw_all(unfinished, jobs, size)
        rows = sorted((tag, avatar_options.tag_category(tag)) for tag in counts)
        files.write_csv(unfinished / "tags.csv", ("name", "category"), rows)
    return dict(counts)


def _draw_all(folder: Path, jobs: Sequence[DrawingJob], size: int) -> None:
    """Draw style by style: reading a style takes as long as a hundred drawings."""
    by_style: defaultdict[str, list[DrawingJob]] = defaultdict(list)
    for job in jobs:
        by_style[job[1].style].append(job)
    tasks = sorted(by_style.items(), key=lambda task: -len(task[1]))
    draw = partial(_draw_style, folder=folder, size=size)
    cores = world.available_cores()
    drawn = workers.run_tasks(draw, tasks, workers=cores, timeout=None, window=len(tasks))
    for result in progress.track(drawn, "drawing", len(tasks)):
        if isinstance(result, workers.Lost):
            raise TaggerError(f"A drawing is missing: {result.reason}. Run again.")


def _draw_style(
    task: tuple[str, Sequence[DrawingJob]], begin: Begin, *, folder: Path, size: int
) -> None:
    name, jobs = task
    style = Style(json.loads((resources("dicebear_styles") / f"{name}.json").read_bytes()))
    for stem, options in jobs:
        (folder / f"{stem}.png").write_bytes(_render(style, options, size))
        text = ", ".join(options.tags) + "\n"
        (folder / f"{stem}.txt").write_text(text, encoding="utf-8", newline="\n")


def _render(style: Style, options: AvatarOptions, size: int) -> bytes:
    values = options.values
    avatar = Avatar(style, _dicebear_options(values)).to_string()
    colour = values["backgroundColor"]
    background = BACKGROUNDS[values["background"]].format(colour=colour, shade=_shade(colour))
    svg = _wrap(background + avatar, FINISHES[values["finish"]])
    return bytes(
        resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    )


def _dicebear_options(values: Mapping[str, str]) -> dict[str, Any]:
    """Return the options for dicebear, on a transparent background."""
    options = dict[str, Any]()
    for option, value in values.items():
        if option.endswith("Color"):
            options[option] = value
        elif value == "none":
            options[f"{option}Probability"] = 0
        elif option not in ("pose", "background", "finish"):
            options |= {f"{option}Variant": value, f"{option}Probability": 100}
    frame = {"size": CANVAS, "backgroundColor": [], "seed": " ".join(values.values())}
    jitter = {"scale": [0.95, 1.03], "translateX": [-5, 5], "translateY": [-1, 2]}
    return options | frame | jitter | POSES[values["pose"]]


def _shade(colour: str) -> str:
    """Return black or white, whichever stands out from the colour."""
    red, green, blue = bytes.fromhex(colour)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else "white"


def _wrap(content: str, effect: str) -> str:
    finish = f'<filter id="finish" color-interpolation-filters="sRGB">{effect}</filter>'
    body = f'{finish}<g filter="url(#finish)">{content}</g>' if effect else content
    box = f'viewBox="0 0 {CANVAS} {CANVAS}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{body}</svg>'
