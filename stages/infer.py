"""Tag pictures with a trained model. Needs neither DVC nor MLflow, and an export not even torch."""

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
    """Tag what the arguments name; return 0, 1 where pictures failed, 130 where it was stopped."""
    from tagger.system import processes

    processes.prestart("tagger.inference.decoders")  # while this process loads the rest
    from tagger import params
    from tagger.inference import cli, inputs, outputs
    from tagger.system import world

    here = world.read_world()
    asked = cli.parse_args(arguments, params.load(ROOT / params.PATH).infer, ROOT, here.cores)
    stdin = sys.stdin.buffer if inputs.STDIN in asked.inputs else None
    found = inputs.find_inputs(
        asked.inputs, recursive=asked.recursive, skip=asked.skip, stdin=stdin
    )
    plan = outputs.plan_outputs(asked, found, here)
    tally = outputs.RunStatus()
    try:
        stopped = run(asked, plan, here, tally) if plan.todo else False
    except BaseException:
        with suppress(OSError):  # what ended the run is told, and may be a full disk
            outputs.write_failures(tally, asked, here, whole=False)
        raise
    listed = outputs.write_failures(tally, asked, here, whole=not stopped)
    for line in outputs.summary(tally, plan, listed, asked.lang, stopped=stopped):
        print(line, file=sys.stderr)
    if stopped:
        return 130
    return 1 if tally.failures else 0


def run(asked: "Options", plan: "OutputPlan", here: "World", tally: "RunStatus") -> bool:
    """Tag what is planned; return whether it was stopped before its end."""
    from tagger.images import decode
    from tagger.inference import outputs, pipeline
    from tagger.models import load_tagger
    from tagger.models.runtimes import Device
    from tagger.system import progress, signals

    decode.init_process()
    decoding = asked.pipeline.workers > 0
    use = Device(asked.device, here.local_rank, here.cores, cores_are_shared=decoding)
    tagger = load_tagger(asked.model, use, calibrated=asked.calibrated)
    choose = outputs.build_captioner(asked, tagger)
    begun = time.monotonic()
    with signals.stop_on_signal() as stop:
        blocks = pipeline.tag_images(
            tagger, plan.todo, asked.pipeline, embed=bool(plan.embeddings), stop=stop
        )
        if asked.output != "text":
            blocks = progress.track_rows(blocks, len(plan.todo), "tagging")
        outputs.write_outputs(blocks, choose, asked, plan, tally)
        tally.seconds = time.monotonic() - begun
        return stop.is_set() and tally.seen < len(plan.todo)


if __name__ == "__main__":
    with errors.exit_on_error():
        logging.basicConfig(format="%(message)s")
        try:
            raise SystemExit(main(sys.argv[1:]))
        except BrokenPipeError:  # whoever read the text has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
