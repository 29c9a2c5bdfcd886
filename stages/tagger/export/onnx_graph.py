"""A model as an ONNX graph that runtimes of the last years load."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxslim
import torch
from torch import Tensor, nn

from tagger.core import files
from tagger.core.errors import TaggerError, one_line
from tagger.export import graphs

OUTPUTS = ("prediction", "logits", "embedding")

_MAX_BYTES = 2**31  # of a protobuf message


def write_model(model: nn.Module, path: Path, *, size: int, opset: int) -> None:
    """Write a model from normalised pixels to probabilities, logits and embeddings."""
    example = torch.zeros(2, 3, size, size)
    write_graph(graphs.PlainGraph(model), path, example, OUTPUTS, opset=opset)


def write_graph(
    module: nn.Module, path: Path, example: Tensor, outputs: Sequence[str], *, opset: int
) -> None:
    """Write a module as a graph with an input `input` and these outputs, the batch first.

    example: an input for a batch of two or more
    Raises TaggerError if the module cannot be written at this opset.
    """
    # The outermost module must be in eval mode: the exporter puts it back into the mode it found.
    module = module.to(memory_format=torch.contiguous_format).cpu().eval()
    size = sum(weights.nbytes for weights in module.state_dict().values())
    if size >= _MAX_BYTES:
        raise TaggerError(
            f"The model has {size / 1e9:.1f} GB of weights, and an ONNX file can hold 2.1. "
            "Use models/tagger, or take a smaller backbone."
        )
    path.parent.mkdir(exist_ok=True)
    with files.atomic_write(path) as partial:
        _export(module, partial, example, outputs, opset)
        graph = onnxslim.slim(onnx.load(partial))
        onnx.checker.check_model(graph, full_check=True)
        actual = max(entry.version for entry in graph.opset_import)
        if actual != opset:
            raise TaggerError(
                f"{path} has opset {actual}, not {opset}: set export.opset to {actual}."
            )
        onnx.save(graph, partial)


def _export(
    module: nn.Module, path: Path, example: Tensor, outputs: Sequence[str], opset: int
) -> None:
    # The exporter warns about itself, and of traced shapes.
    with warnings.catch_warnings(action="ignore"):
        try:
            # Asked for opset 17, the newer exporter (dynamo=True) silently gives 18.
            torch.onnx.export(
                module,
                (example,),
                path,
                dynamo=False,
                opset_version=opset,
                input_names=["input"],
                output_names=list(outputs),
                dynamic_axes={name: {0: "batch"} for name in ("input", *outputs)},
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise TaggerError(
                f"The backbone cannot be written as ONNX: {one_line(error)}."
            ) from error
