"""Draw the demonstration set: a folder of images with tags, like a user's own."""

from pathlib import Path

from tagger import params
from tagger.core import errors
from tagger.demo import draw

FOLDER = Path("data/demo")


def main(p: params.Params) -> None:
    counts = draw.draw_images(FOLDER, images=p.demo.images, size=p.demo.size, seed=p.seed)
    print(f"drew {p.demo.images:,} images of {p.demo.size} px, {len(counts):,} tags -> {FOLDER}")


if __name__ == "__main__":
    with errors.exit_on_error():
        main(params.load_for_stage(__doc__))
