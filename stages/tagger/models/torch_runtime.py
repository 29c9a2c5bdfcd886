"""The runtime of torch."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tagger.images import loader
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess
from tagger.models import backbone, heads
from tagger.models.runtimes import Array, Device, Output
from tagger.system import distributed
from tagger.system.memory import MicroBatch

_ADVICE = "Lower the image_size, or give the device to this process alone."


class TorchRuntime:
    """Runs a model where it lies, in eval mode and float32, and leaves it in the mode it was in.

    A batch that does not fit into the memory of the device is computed in smaller pieces.
    """

    def __init__(self, model: nn.Module, preprocess: Preprocess, advice: str = _ADVICE) -> None:
        """advice: what a user can do if not even one image fits into memory."""
        sharded = distributed.is_sharded(model)
        self.size = preprocess.size
        self._model = model
        self._preprocess = preprocess
        self._micro_batch = MicroBatch(
            "Lower train.micro_batch." if sharded else advice, can_halve=not sharded
        )

    def run(self, squares: Pixels, *outputs: Output) -> list[Array]:
        was_training = self._model.training
        self._model.eval()
        try:
            pieces = self._micro_batch.compute(
                len(squares), lambda start, end: self._piece(squares[start:end], outputs)
            )
        finally:
            self._model.train(was_training)
        return (
            pieces[0]
            if len(pieces) == 1
            else [np.concatenate(p) for p in zip(*pieces, strict=True)]
        )

    def _piece(self, squares: Pixels, outputs: tuple[Output, ...]) -> list[Array]:
        device = next(self._model.parameters()).device
        with backbone.inference_mode():
            pixels = torch.from_numpy(squares).to(device)
            if not pixels.is_floating_point():  # as embeddings are, the input of a head alone
                pixels = loader.normalise_squares(pixels, device, self._preprocess)
            values: dict[Output, Tensor] = {}
            if "embeddings" in outputs:
                logits, values["embeddings"] = heads.logits_and_embeddings(self._model, pixels)
            else:
                logits = self._model(pixels)
            values["logits"] = logits.float()
            if "probabilities" in outputs:
                values["probabilities"] = values["logits"].sigmoid()
            return [np.asarray(values[output].float().cpu()) for output in outputs]


def load_torch(folder: Path, preprocess: Preprocess, device: Device) -> TorchRuntime:
    """Return the model of a folder of weights, on `device.kind` cpu or cuda.

    Raises TaggerError for weights that do not load.
    """
    on_cuda = device.kind == "cuda"
    if device.threads and not on_cuda:
        torch.set_num_threads(device.threads)
    where = torch.device(f"cuda:{device.number}" if on_cuda else "cpu")
    model = backbone.to_device(backbone.load_model(folder), where)
    return TorchRuntime(model, preprocess, "Try --device cpu." if on_cuda else _ADVICE)
