"""Tag images with a trained model. This needs neither DVC nor MLflow, nor torch for an export."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tagger.core import errors

if TYPE_CHECKING:
    from tagger.inference.cli import Options
    from tagger.inference.outputs import OutputPlan, RunStatus
    from tagger.system.world import World

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str]) -> int:
    """Tag the images that the arguments name.

    Return the exit code: 0, 1 if images failed, 130 if it was stopped.
    """
    from tagger import params
    from tagger.inference import cli, inputs, outputs
    from tagger.system.world import read_world

    world = read_world()
    options = cli.parse_args(arguments, params.load(ROOT / params.PATH).infer, ROOT, world.cores)
    stdin = sys.stdin.buffer if inputs.STDIN in options.inputs else None
    images = inputs.find_inputs(
        options.inputs, recursive=options.recursive, skip=options.skip, stdin=stdin
    )
    plan = outputs.plan_outputs(options, images, world)
    status = outputs.RunStatus()
    try:
        stopped = run(options, plan, world, status) if plan.todo else False
    except BaseException:
        with suppress(OSError):  # the error of the run is reported, and may be a full disk
            outputs.write_failures(status, options, world, whole=False)
        raise
    failures = outputs.write_failures(status, options, world, whole=not stopped)
    for line in outputs.summary(status, plan, failures, options.lang, stopped=stopped):
        print(line, file=sys.stderr)
    if stopped:
        return 130
    return 1 if status.failures else 0


def run(options: "Options", plan: "OutputPlan", world: "World", status: "RunStatus") -> bool:
    """Tag the images of the plan; return whether it was stopped before its end."""
    from tagger.images import decode
    from tagger.inference import outputs, pipeline
    from tagger.models import load_tagger
    from tagger.models.runtimes import Device
    from tagger.system import processes, progress, signals

    decode.init_process()
    is_shared = options.pipeline.workers > 0 and len(plan.todo) > 1
    if is_shared:
        processes.prestart("tagger.inference.decoders")  # meanwhile this process loads the model
    device = Device(options.device, world.local_rank, world.cores, cores_are_shared=is_shared)
    tagger = load_tagger(options.model, device, calibrated=options.calibrated)
    captioner = outputs.build_captioner(options, tagger)
    start = time.monotonic()
    with signals.stop_on_signal() as stop:
        batches = pipeline.tag_images(
            tagger, plan.todo, options.pipeline, embed=bool(plan.embeddings), stop=stop
        )
        if options.output != "text":
            batches = progress.track_rows(batches, len(plan.todo), "tagging")
        outputs.write_outputs(batches, captioner, options, plan, status)
        status.seconds = time.monotonic() - start
        return stop.is_set() and status.seen < len(plan.todo)


if __name__ == "__main__":
    with errors.exit_on_error():
        logging.basicConfig(format="%(message)s")
        try:
            raise SystemExit(main(sys.argv[1:]))
        except BrokenPipeError:  # whoever read the text has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
