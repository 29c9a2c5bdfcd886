"""A model as a graph with the inputs and outputs of each tool.

Tools of the WD14 layout pad an image in white and resize it to 448 pixels themselves, whatever the
model was trained at. The rest of the preprocessing is then part of the graph.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tagger.images import resize
from tagger.images.preprocess import Preprocess
from tagger.models import heads

TOOL_SIZE = 448  # pixels; kohya's sd-scripts take no other


class PlainGraph(nn.Module):
    """A model that gives its probabilities, its logits and the pooled features of its backbone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, 3, size, size), normalised -> (batch, tags), (batch, tags), (batch, features)."""
        logits, embedding = heads.logits_and_embeddings(self.model, pixels)
        return logits.sigmoid(), logits, embedding


class PreprocessedModel(nn.Module):
    """A model that resizes squares of 448 px to its own size, and normalises them."""

    mean: Tensor  # (3, 1, 1), R, G, B
    std: Tensor
    weights: Tensor  # (size, 448)

    def __init__(self, model: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(preprocess.std).view(3, 1, 1) * 255)
        # The Resize of ONNX does not antialias before opset 18: two products of matrices do.
        weights = resize.resize_matrix(TOOL_SIZE, preprocess.size, preprocess.interpolation)
        self.register_buffer("weights", torch.from_numpy(weights.astype(np.float32)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 3, 448, 448), RGB from 0 to 255 -> logits (batch, tags), (batch, features)."""
        return heads.logits_and_embeddings(
            self.model, (self.resized(pixels) - self.mean) / self.std
        )

    def resized(self, pixels: Tensor) -> Tensor:
        """(..., 448, 448) -> (..., size, size), rounded to 8 bits after each pass as by Pillow."""
        if self.weights.shape[0] == TOOL_SIZE:
            return pixels
        narrow = _round_to_8_bits(pixels @ self.weights.T)
        return _round_to_8_bits(self.weights @ narrow)


def _round_to_8_bits(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)


class Wd14Graph(nn.Module):
    """The graph of the WD14 layout."""

    columns: Tensor  # (rows,), one past the last output for a row without one

    def __init__(
        self, model: nn.Module, preprocess: Preprocess, columns: Sequence[int | None], tags: int
    ) -> None:
        """columns: the output of the model for each row of selected_tags.csv; None: always 0"""
        super().__init__()
        self.prepared = PreprocessedModel(model, preprocess)
        indices = [tags if column is None else column for column in columns]
        self.register_buffer("columns", torch.tensor(indices))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 448, 448, 3), BGR from 0 to 255 -> probabilities (batch, rows), embeddings."""
        logits, embedding = self.prepared(pixels.permute(0, 3, 1, 2).flip(1))
        probabilities = torch.cat([logits.sigmoid(), torch.zeros_like(logits[:, :1])], dim=1)
        return probabilities.index_select(1, self.columns), embedding


class KohyaGraph(nn.Module):
    """The graph of the layout of cl_tagger, which kohya's sd-scripts load."""

    def __init__(self, model: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.prepared = PreprocessedModel(model, preprocess)

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, 3, 448, 448), BGR from -1 to 1 -> logits (batch, tags)."""
        logits: Tensor = self.prepared((pixels.flip(1) + 1) * 127.5)[0]
        return logits
