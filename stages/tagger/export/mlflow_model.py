"""What MLflow runs to serve an export: a table of images in, a table of their tags out.

`log_model.log_export` puts this file into a model, with what it imports of the project.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Map

from tagger.core.errors import TaggerError
from tagger.images import decode
from tagger.images.preprocess import Preprocess
from tagger.inference import decoders, pipeline, threshold_choice
from tagger.inference.captions import Captioner
from tagger.inference.decoders import Square
from tagger.inference.inputs import InputImage
from tagger.models import layouts, load_tagger
from tagger.models.tagger import Tagger

IMAGE, PATH = "image", "path"  # columns: the bytes of a file, or its path
THRESHOLD = "threshold"  # a parameter of the request

SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(DataType.binary, IMAGE, required=False),
            ColSpec(DataType.string, PATH, required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(DataType.string, "rating", required=False),
            ColSpec(Map(DataType.double), "tags"),  # confidences by name
            ColSpec(DataType.string, "error", required=False),
        ]
    ),
    params=ParamSchema([ParamSpec(THRESHOLD, DataType.string, threshold_choice.BEST)]),
)
OUTPUT_COLUMNS = SIGNATURE.outputs.input_names()


class ServedTagger(PythonModel):
    """Tags images by an export, with ONNX Runtime."""

    def load_context(self, context: PythonModelContext) -> None:
        decode.init_process()
        self.tagger = load_tagger(Path(context.artifacts[layouts.ONNX]).parent)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Return a row for each row: the rating, the tags with their confidences, or the error.

        Raises MlflowException for a wrong table or threshold.
        """
        if not {IMAGE, PATH} & set(model_input.columns):
            raise MlflowException.invalid_parameter_value(
                f"The table has neither a column {IMAGE!r} nor {PATH!r}."
            )
        captioner = _captioner(self.tagger, (params or {}).get(THRESHOLD, threshold_choice.BEST))
        squares = _squares(model_input, self.tagger.preprocess)
        rows = list(_output_rows(self.tagger, captioner, squares))
        return pd.DataFrame(rows, index=model_input.index, columns=OUTPUT_COLUMNS, dtype=object)


def _captioner(tagger: Tagger, threshold: str) -> Captioner:
    try:
        thresholds = threshold_choice.resolve_thresholds(
            threshold_choice.parse_thresholds(threshold), tagger
        )
    except (ValueError, TaggerError) as error:
        raise MlflowException.invalid_parameter_value(f"{THRESHOLD}: {error}") from None
    return Captioner(tagger.tags, thresholds)


def _squares(table: pd.DataFrame, preprocess: Preprocess) -> Iterator[Square]:
    missing = [None] * len(table)
    for image, path in zip(table.get(IMAGE, missing), table.get(PATH, missing), strict=True):
        yield _square(image, path, preprocess)


def _square(image: object, path: object, preprocess: Preprocess) -> Square:
    """Return the image of a row as a square, or why it cannot be one."""
    has_image, has_path = _has_value(image), _has_value(path)
    if has_image and has_path:
        return f"has both {IMAGE} and {PATH}: give one of them"
    if not (has_image or has_path):
        return f"has neither {IMAGE} nor {PATH}"
    if isinstance(image, bytes) and has_image:
        return decoders.decode_square(image, preprocess)
    if isinstance(path, str | Path) and has_path:
        return decoders.decode_square(Path(path), preprocess)
    return "its image is not bytes, base64 in JSON" if has_image else "its path is not a text"


def _has_value(value: Any) -> bool:
    """Return whether a cell has a value; an image in JSON may be empty, but not null."""
    return bool(value) if isinstance(value, str | bytes) else pd.isna(value) is not True


def _output_rows(
    tagger: Tagger, captioner: Captioner, squares: Iterator[Square]
) -> Iterator[Mapping[str, Any]]:
    """Yield rating and tags as in tags.json, the likeliest rating among the tags, or the error."""
    images = ((InputImage(Path(), Path()), square) for square in squares)
    batches = pipeline.make_batches(images, pipeline.BATCH_SIZES[tagger.device])
    for prediction in chain.from_iterable(pipeline.predict_images(tagger, batches, embed=False)):
        if prediction.problem:
            yield dict(zip(OUTPUT_COLUMNS, (None, {}, prediction.problem), strict=True))
            continue
        caption = captioner(prediction.image, prediction.probabilities)
        tags = {tag.name: round(tag.confidence, 6) for tag in caption.tags_with_rating()}
        rating = caption.rating.name if caption.rating else None
        yield dict(zip(OUTPUT_COLUMNS, (rating, tags, None), strict=True))


set_model(ServedTagger())
