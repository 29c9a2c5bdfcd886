"""Tag images on a page in the browser, which this machine serves. Needs Gradio."""

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
    # Imported here: the processes that decode images load this file, too.
    from tagger import params
    from tagger.images import decode
    from tagger.web import server

    p = params.load(ROOT / params.PATH).infer
    args = parse_args(arguments, p)
    listener = server.open_socket(args.host, args.port)
    with server.private_folder() as folder, listener:
        from tagger.web import page

        decode.init_process()
        handlers = build_handlers(args, p, folder)
        print(f"{handlers.model_summary}\n{server.url_of(listener)}", flush=True)
        blocks = page.build_page(handlers)
        server.serve(blocks, listener, args.max_upload, handlers.messages)


def parse_args(arguments: Sequence[str], p: "InferParams") -> argparse.Namespace:
    from tagger.inference import argument_types

    parser = errors.ArgumentParser(
        prog="app.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, default=ROOT / p.model, help="as for infer.py")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="runs the model")
    add("--host", default="127.0.0.1", help="0.0.0.0: everyone who reaches this machine may come")
    add("--port", type=argument_types.integer(0), default=7860, help="0: any that is free")
    add("--max-upload", type=argument_types.integer(1), default=64, metavar="MB", help="of a file")
    add(
        "--max-pixels",
        type=argument_types.integer(1),
        default=100,
        metavar="MILLIONS",
        help="of an image",
    )
    add("--lang", choices=("en", "zh"), default=p.lang, help="of the page")
    return parser.parse_args(arguments)


def build_handlers(args: argparse.Namespace, p: "InferParams", folder: Path) -> "PageHandlers":
    """Load the model. Raises TaggerError if there is none."""
    from tagger.inference.pipeline import PipelineOptions
    from tagger.models import load_tagger
    from tagger.models.runtimes import Device
    from tagger.system import world
    from tagger.web import saliency
    from tagger.web.album import UploadDecoder
    from tagger.web.handlers import PageHandlers
    from tagger.web.messages import MESSAGES

    cores = world.read_world().cores
    device = Device(args.device, threads=cores)
    tagger = load_tagger(args.model, device, calibrated=p.calibrated)
    messages, name = MESSAGES[args.lang], "/".join(args.model.parts[-2:])
    workers = max(1, cores if p.workers is None else p.workers)
    return PageHandlers(
        tagger=tagger,
        options=PipelineOptions(p.batch_size, workers, p.timeout),
        decode_upload=UploadDecoder(args.max_upload, args.max_pixels),
        messages=messages,
        model_summary=messages.model.format(
            name, len(tagger.tags), tagger.preprocess.size, tagger.device
        ),
        folder=folder,
        saliency=saliency.build_saliency(args.model, tagger),
    )


if __name__ == "__main__":
    with errors.exit_on_error():
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        main(sys.argv[1:])
