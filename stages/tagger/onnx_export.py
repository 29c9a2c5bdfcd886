"""A model as an ONNX graph, from normalised pixels to probabilities."""

import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from tagger import files, heads
from tagger.errors import TaggerError

OUTPUTS = ("prediction", "logits", "embedding")


class Graph(nn.Module):
    """A model with its probabilities first, then its logits and what its backbone pools."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, 3, size, size) -> (batch, tags), (batch, tags), (batch, features)."""
        logits, embedding = heads.outputs(self.model, pixels)
        return logits.sigmoid(), logits, embedding


def write(model: nn.Module, path: Path, *, size: int, opset: int) -> None:
    """Write the graph with input `input`, the outputs OUTPUTS, and a batch of any size.

    Raises TaggerError where the backbone cannot be written at this opset.
    """
    # The outermost module must be in eval mode: the exporter puts it back into the mode it found.
    graph = Graph(model.to(memory_format=torch.contiguous_format).cpu()).eval()
    axes = {name: {0: "batch"} for name in ("input", *OUTPUTS)}
    with files.replacing(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself, and of traced shapes
        try:
            # Asked for opset 17, the newer exporter (dynamo=True) silently gives 18.
            torch.onnx.export(
                graph,
                (torch.zeros(2, 3, size, size),),
                partial,
                dynamo=False,
                opset_version=opset,
                input_names=["input"],
                output_names=list(OUTPUTS),
                dynamic_axes=axes,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = " ".join(str(error).split())
            raise TaggerError(f"The backbone cannot be written as ONNX: {reason}") from error
        written = onnx.load(partial)
        onnx.checker.check_model(written, full_check=True)
        found = max(entry.version for entry in written.opset_import)
        if found != opset:
            raise TaggerError(
                f"{path} has opset {found}, not {opset}: set export.opset to {found}."
            )
