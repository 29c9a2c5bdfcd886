"""Tag pictures on a page in the browser, which this machine serves. Needs Gradio."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tagger.core import errors

if TYPE_CHECKING:
    from tagger.params import InferParams
    from tagger.web.handlers import PageHandlers

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str]) -> None:
    # Loaded here, as the processes that decode pictures load this file, too.
    from tagger import params
    from tagger.images import decode
    from tagger.web import server

    p = params.load(ROOT / params.PATH).infer
    asked = parse(arguments, p)
    at = server.open_socket(asked.host, asked.port)
    with server.private_folder() as folder, at:
        from tagger.web import page, widgets

        decode.init_process()
        visits = prepare(asked, p, folder)
        print(f"{visits.model_summary}\n{server.url_of(at)}", flush=True)
        words = widgets.drop_css(visits.messages)
        server.serve(
            page.build(visits), at, asked.max_upload, words, widgets.CSS_PATH, widgets.FONTS
        )


def parse(arguments: Sequence[str], p: "InferParams") -> argparse.Namespace:
    from tagger.inference import values

    parser = errors.ArgumentParser(
        prog="app.py",
        description="Tag pictures on a page in the browser.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, default=ROOT / p.model, help="as for infer.py")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="what computes")
    add("--host", default="127.0.0.1", help="0.0.0.0: whoever reaches this machine may come")
    add("--port", type=values.whole(0), default=7860, help="0: any that is free")
    add("--max-upload", type=values.whole(1), default=64, metavar="MB", help="of a file")
    add("--max-pixels", type=values.whole(1), default=100, metavar="MILLIONS", help="of a picture")
    add("--lang", choices=("en", "zh"), default=p.lang, help="of the page")
    return parser.parse_args(arguments)


def prepare(asked: argparse.Namespace, p: "InferParams", folder: Path) -> "PageHandlers":
    """Load the model. Raises TaggerError where there is none."""
    from tagger.inference.pipeline import PipelineOptions
    from tagger.models import load_tagger
    from tagger.models.runtimes import Device
    from tagger.system import world
    from tagger.web import saliency
    from tagger.web.album import UploadDecoder
    from tagger.web.handlers import PageHandlers
    from tagger.web.messages import MESSAGES

    cores = world.read_world().cores
    tagger = load_tagger(asked.model, Device(asked.device, threads=cores), calibrated=p.calibrated)
    name = "/".join(asked.model.parts[-2:])
    told = (name, len(tagger.tags), tagger.preprocess.size, tagger.device)
    return PageHandlers(
        tagger=tagger,
        pace=PipelineOptions(
            p.batch_size, max(1, cores if p.workers is None else p.workers), p.timeout
        ),
        decode_upload=UploadDecoder(asked.max_upload, asked.max_pixels),
        messages=MESSAGES[asked.lang],
        model_summary=MESSAGES[asked.lang].model.format(*told),
        folder=folder,
        saliency=saliency.build_saliency(asked.model, tagger),
    )


if __name__ == "__main__":
    with errors.exit_on_error():
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        main(sys.argv[1:])
