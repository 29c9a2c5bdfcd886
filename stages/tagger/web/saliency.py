"""Where in a picture a model looks for a tag: HiResCAM. Imports torch only where it is asked.

Draelos and Carin 2020, https://arxiv.org/abs/2011.08891: activations times the gradient of the
tag's logit, summed over channels, what speaks against the tag left out. Other than Grad-CAM, it
shows no place that the model did not use, where the rest of the model is linear.
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

CELLS = 6  # along a side, below which a map says little
_SHARES = (0.0, 0.35, 0.65, 1.0)  # of the most that speaks for a tag, and their colours
_RAMP = np.array([(20, 11, 54), (132, 32, 107), (229, 92, 48), (252, 230, 120)], np.float32)
_LEAST, _MOST = 0.25, 0.75  # opacity of the colours, where nothing and where most speaks for a tag


class Saliency:
    """The torch model of a folder, loaded when it is first asked."""

    def __init__(self, folder: Path, prepared: Preprocess, tags: int, *, cuda: bool) -> None:
        self._folder = folder
        self._prepared = prepared
        self._tags = tags
        self._cuda = cuda
        self._model: nn.Module | None = None
        self._lock = threading.Lock()

    def __call__(self, picture: Pixels, column: int) -> Heatmap:
        """Return what speaks for a tag in each place of a picture, (height, width).

        Raises TaggerError for weights that do not load, or a backbone without maps.
        """
        import torch

        with self._lock:
            self._model = self._model or self._loaded()
            where = next(self._model.parameters()).device
            pixels = torch.from_numpy(self._prepared(picture)[None]).to(where)
            cells = hirescam(self._model, pixels, column)
        return to_image(cells, self._prepared, picture.shape[1], picture.shape[0])

    def load_in_background(self) -> None:
        """Load the model meanwhile: that takes longer than many a map."""

        def load() -> None:
            with self._lock, suppress(TaggerError):  # which will come again when it is asked
                self._model = self._model or self._loaded()

        threading.Thread(target=load, daemon=True).start()

    def _loaded(self) -> "nn.Module":
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
    """Return what shows where a model looks, or what it lacks for that."""
    source = layouts.find_tagger(model.parent if model.suffix == ".onnx" else model)
    if source.layout == "wd14" or not source.has_weights:
        return "weights"  # those of the WD14 layout may want BGR, and nothing says so
    if not all(find_spec(name) for name in ("torch", "timm", "safetensors")):
        return "torch"
    return Saliency(
        source.folder, tagger.preprocess, len(tagger.tags), cuda=tagger.device == "cuda"
    )


def hirescam(model: "nn.Module", pixels: "Tensor", column: int) -> Heatmap:
    """Return the map of one logit, (rows, columns), by the deepest features that serve.

    pixels: (1, 3, size, size), normalised
    They are of a module that timm's `feature_info` names, have at least six cells along a side
    where any do, and the logit hangs on them: what a vision transformer with a class token makes
    of the picture's own tokens in its last block, it does not use.
    Where the logit hangs on none of them, the map is 0. Raises TaggerError where there are none.
    """
    import torch

    from tagger.models.heads import QueryTagger

    body: Any = model.backbone if isinstance(model, QueryTagger) else model
    with torch.enable_grad(), _recorded(body) as outputs:
        logits = model(pixels)
    sides = [0 if (cells := _cells(body, output)) is None else len(cells) for output in outputs]
    wanted = min(CELLS, max(sides, default=0))
    fine = [output for output, side in zip(outputs, sides, strict=True) if side >= wanted > 0]
    if not fine:
        raise TaggerError(f"{type(body).__name__} has no map of features to see a place on.")
    gradients = torch.autograd.grad(logits[0, column], fine, allow_unused=True)
    found = [
        _cells(body, output.detach() * gradient)
        for output, gradient in zip(fine, gradients, strict=True)
        if gradient is not None
    ]
    used = [cells for cells in found if cells is not None and cells.any()]
    cells = used[-1] if used else torch.zeros(wanted, wanted)
    heat: Heatmap = cells.clamp(min=0).float().cpu().numpy()
    return heat


@contextmanager
def _recorded(body: Any) -> Iterator[list["Tensor"]]:
    """Yield what the modules of `feature_info` return, from the first to the last."""
    from torch import Tensor

    outputs: list[Tensor] = []

    def keep(module: object, given: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.append(output)

    names = [info["module"] for info in getattr(body, "feature_info", ())]
    hooks = [body.get_submodule(name).register_forward_hook(keep) for name in names]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _cells(body: Any, features: "Tensor") -> "Tensor | None":
    """Return features of one picture, summed over channels: (rows, columns). None: no such map."""
    if features.ndim == 4:
        return features[0].sum(-1 if getattr(body, "output_fmt", "NCHW") == "NHWC" else 0)
    if features.ndim != 3:
        return None
    tokens = features[0, getattr(body, "num_prefix_tokens", 0) :].sum(-1)  # no class token
    side = round(len(tokens) ** 0.5)
    return tokens.view(side, side) if side > 1 and side * side == len(tokens) else None


def to_image(cells: Heatmap, prepared: Preprocess, width: int, height: int) -> Heatmap:
    """Return a map of the model's square, (rows, columns), as one of a picture, (height, width).

    What the square has beside the picture is left out; what it has not of it, is 0.
    """
    left, top, right, bottom = prepared.image_box(width, height)
    seen = max(left, 0), max(top, 0), min(right, prepared.size), min(bottom, prepared.size)
    across, down = width / (right - left), height / (bottom - top)
    start, above = round((seen[0] - left) * across), round((seen[1] - top) * down)
    end, below = round((seen[2] - left) * across), round((seen[3] - top) * down)
    rows, columns = cells.shape
    per = prepared.size / columns, prepared.size / rows  # pixels of the square
    box = (seen[0] / per[0], seen[1] / per[1], seen[2] / per[0], seen[3] / per[1])
    end, below = max(end, start + 1), max(below, above + 1)  # of a picture that is a mere line
    sides = (end - start, below - above)
    part = Image.fromarray(cells).resize(sides, Image.Resampling.BICUBIC, box)
    heat = np.zeros((height, width), np.float32)
    heat[above:below, start:end] = np.asarray(part).clip(0)  # the filter swings below
    return heat


def overlay(picture: Pixels, heat: Heatmap) -> Pixels:
    """Return a picture, (height, width, 3), under the colours of its map."""
    share = heat / max(float(heat.max()), 1e-12)
    over = np.stack([np.interp(share, _SHARES, channel) for channel in _RAMP.T], axis=-1)
    opacity = (_LEAST + (_MOST - _LEAST) * share)[..., None]
    mixed: Pixels = (picture * (1 - opacity) + over * opacity).round().astype(np.uint8)
    return mixed
