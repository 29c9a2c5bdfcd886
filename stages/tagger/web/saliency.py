"""Where in an image a model looks for a tag: HiResCAM. Imports torch only when it is needed.

Draelos and Carin 2020, https://arxiv.org/abs/2011.08891: activations times the gradient of the
tag's logit, summed over channels, without what speaks against the tag. Unlike Grad-CAM, it shows
no place that the model did not use, if the rest of the model is linear.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from tagger.core.errors import TaggerError
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess
from tagger.models import layouts
from tagger.models.tagger import Tagger

if TYPE_CHECKING:
    from torch import Tensor, nn

Heatmap = npt.NDArray[np.float32]  # (rows, columns), 0 or more
MissingRequirement: TypeAlias = Literal["weights", "torch"]

MIN_CELLS = 6  # along a side: smaller maps say little
_LEVELS = (0.0, 0.35, 0.65, 1.0)  # of the maximum of a map, and their colours
_COLOURS = np.array([(20, 11, 54), (132, 32, 107), (229, 92, 48), (252, 230, 120)], np.float32)
_MIN_OPACITY, _MAX_OPACITY = 0.25, 0.75  # at 0 and at the maximum of a map


class Saliency:
    """The torch model of a folder, loaded at its first use."""

    def __init__(self, folder: Path, preprocess: Preprocess, tags: int, *, cuda: bool) -> None:
        self._folder = folder
        self._preprocess = preprocess
        self._tags = tags
        self._cuda = cuda
        self._model: nn.Module | None = None
        self._lock = threading.Lock()

    def __call__(self, image: Pixels, column: int) -> Heatmap:
        """Return how much each place of an image supports a tag, (height, width).

        Raises TaggerError for weights that do not load, and for a backbone without maps.
        """
        import torch

        with self._lock:
            self._model = self._model or self._load()
            where = next(self._model.parameters()).device
            pixels = torch.from_numpy(self._preprocess(image)[None]).to(where)
            cells = hirescam(self._model, pixels, column)
        return to_image(cells, self._preprocess, image.shape[1], image.shape[0])

    def load_in_background(self) -> None:
        """Load the model, which takes longer than most maps, before it is needed."""

        def load() -> None:
            with self._lock, suppress(TaggerError):  # is raised again at the first use
                self._model = self._model or self._load()

        threading.Thread(target=load, daemon=True).start()

    def _load(self) -> "nn.Module":
        import torch

        from tagger.models import backbone

        model: Any = backbone.load_model(self._folder)
        if model.num_classes != self._tags:
            raise TaggerError(
                f"{self._folder} has weights for {model.num_classes} tags, and lists {self._tags}."
            )
        cuda = self._cuda and torch.cuda.is_available()
        return backbone.to_device(model, torch.device("cuda" if cuda else "cpu"))


def build_saliency(model: Path, tagger: Tagger) -> Saliency | MissingRequirement:
    """Return the saliency of a model, or what it lacks for that."""
    source = layouts.find_tagger(model.parent if model.suffix == ".onnx" else model)
    if source.layout == "wd14" or not source.has_weights:
        return "weights"  # weights of the WD14 layout may take BGR, and nothing says so
    if not all(find_spec(name) for name in ("torch", "timm", "safetensors")):
        return "torch"
    return Saliency(
        source.folder, tagger.preprocess, len(tagger.tags), cuda=tagger.device == "cuda"
    )


def hirescam(model: "nn.Module", pixels: "Tensor", column: int) -> Heatmap:
    """Return the map of one logit, (rows, columns), from the deepest suitable features.

    pixels: (1, 3, size, size), normalised
    Suitable features come from a module in timm's `feature_info`, have at least six cells along a
    side if any do, and the logit depends on them: a vision transformer with a class token does not
    use the other tokens of its last block.
    The map is 0 if the logit depends on no features. Raises TaggerError if there are no features.
    """
    import torch

    from tagger.models.heads import QueryTagger

    body: Any = model.backbone if isinstance(model, QueryTagger) else model
    with torch.enable_grad(), _recorded(body) as outputs:
        logits = model(pixels)
    sides = [0 if (cells := _cells(body, output)) is None else len(cells) for output in outputs]
    min_side = min(MIN_CELLS, max(sides, default=0))
    fine = [output for output, side in zip(outputs, sides, strict=True) if side >= min_side > 0]
    if not fine:
        raise TaggerError(f"{type(body).__name__} has no map of features.")
    gradients = torch.autograd.grad(logits[0, column], fine, allow_unused=True)
    maps = [
        _cells(body, output.detach() * gradient)
        for output, gradient in zip(fine, gradients, strict=True)
        if gradient is not None
    ]
    used = [cells for cells in maps if cells is not None and cells.any()]
    cells = used[-1] if used else torch.zeros(min_side, min_side)
    heatmap: Heatmap = cells.clamp(min=0).float().cpu().numpy()
    return heatmap


@contextmanager
def _recorded(body: Any) -> Iterator[list["Tensor"]]:
    """Yield the outputs of the modules in `feature_info`, the first module first."""
    from torch import Tensor

    outputs: list[Tensor] = []

    def record(module: object, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.append(output)

    names = [info["module"] for info in getattr(body, "feature_info", ())]
    hooks = [body.get_submodule(name).register_forward_hook(record) for name in names]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _cells(body: Any, features: "Tensor") -> "Tensor | None":
    """Return features of one image, summed over channels: (rows, columns). None: not a map."""
    if features.ndim == 4:
        return features[0].sum(-1 if getattr(body, "output_fmt", "NCHW") == "NHWC" else 0)
    if features.ndim != 3:
        return None
    tokens = features[0, getattr(body, "num_prefix_tokens", 0) :].sum(-1)  # no class token
    side = round(len(tokens) ** 0.5)
    return tokens.view(side, side) if side > 1 and side * side == len(tokens) else None


def to_image(cells: Heatmap, preprocess: Preprocess, width: int, height: int) -> Heatmap:
    """Return the map of a square, (rows, columns), as a map of its image, (height, width).

    The padding of the square is cut off; parts of the image outside the square are 0.
    """
    left, top, right, bottom = preprocess.image_box(width, height)
    seen = max(left, 0), max(top, 0), min(right, preprocess.size), min(bottom, preprocess.size)
    across, down = width / (right - left), height / (bottom - top)
    start, above = round((seen[0] - left) * across), round((seen[1] - top) * down)
    end, below = round((seen[2] - left) * across), round((seen[3] - top) * down)
    rows, columns = cells.shape
    per = preprocess.size / columns, preprocess.size / rows  # pixels of the square per cell
    box = (seen[0] / per[0], seen[1] / per[1], seen[2] / per[0], seen[3] / per[1])
    end, below = max(end, start + 1), max(below, above + 1)  # for an image that is a mere line
    sides = (end - start, below - above)
    resized = Image.fromarray(cells).resize(sides, Image.Resampling.BICUBIC, box)
    heatmap = np.zeros((height, width), np.float32)
    heatmap[above:below, start:end] = np.asarray(resized).clip(0)  # the filter undershoots
    return heatmap


def overlay(image: Pixels, heatmap: Heatmap) -> Pixels:
    """Return an image, (height, width, 3), under the colours of its map."""
    level = heatmap / max(float(heatmap.max()), 1e-12)
    colours = np.stack([np.interp(level, _LEVELS, channel) for channel in _COLOURS.T], axis=-1)
    opacity = (_MIN_OPACITY + (_MAX_OPACITY - _MIN_OPACITY) * level)[..., None]
    mixed: Pixels = (image * (1 - opacity) + colours * opacity).round().astype(np.uint8)
    return mixed
