"""What MLflow runs to serve an export: a table of pictures in, one of their tags out.

`serving.log` puts this file into a model, and what it imports of the project beside it.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Map

from tagger.core.errors import TaggerError
from tagger.images import decode
from tagger.images.preprocess import Preprocess
from tagger.inference import decoders, limits, pipeline
from tagger.inference.captions import Captioner
from tagger.inference.decoders import Square
from tagger.inference.inputs import InputImage
from tagger.inference.pipeline import FloatRow
from tagger.models import layouts, load_tagger
from tagger.models.tagger import Tagger

IMAGE, PATH = "image", "path"  # columns of the pictures: the bytes of a file, or where it is
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
    params=ParamSchema([ParamSpec(THRESHOLD, DataType.string, limits.BEST)]),
)
OUTPUT_COLUMNS = SIGNATURE.outputs.input_names()  # columns


class ServedTagger(PythonModel):
    """Tags pictures by an export, with ONNX Runtime."""

    def load_context(self, context: PythonModelContext) -> None:
        decode.init_process()
        self._tagger = load_tagger(Path(context.artifacts[layouts.ONNX]).parent)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Return a row for each row: the rating, the tags with their confidences, or the error.

        Raises MlflowException where the table or the threshold is wrong.
        """
        if not {IMAGE, PATH} & set(model_input.columns):
            raise MlflowException.invalid_parameter_value(
                f"The table has neither a column {IMAGE!r} nor {PATH!r}."
            )
        choose = _captioner(self._tagger, (params or {}).get(THRESHOLD, limits.BEST))
        answers = _answers(self._tagger, choose, _squares(model_input, self._tagger.preprocess))
        return pd.DataFrame(
            list(answers), index=model_input.index, columns=OUTPUT_COLUMNS, dtype=object
        )


def _captioner(tagger: Tagger, threshold: str) -> Captioner:
    try:
        return Captioner(
            tagger.tags, limits.resolve_thresholds(limits.parse_thresholds(threshold), tagger)
        )
    except (ValueError, TaggerError) as error:
        raise MlflowException.invalid_parameter_value(f"{THRESHOLD}: {error}") from None


def _squares(table: pd.DataFrame, prepared: Preprocess) -> Iterator[Square]:
    nothing = [None] * len(table)
    for image, path in zip(table.get(IMAGE, nothing), table.get(PATH, nothing), strict=True):
        yield _square(image, path, prepared)


def _square(image: object, path: object, prepared: Preprocess) -> Square:
    """Return the picture of a row as a square, or why it cannot be one."""
    given = _is_given(image), _is_given(path)
    if all(given):
        return f"has both {IMAGE} and {PATH}, of which one is wanted"
    if not any(given):
        return f"has neither {IMAGE} nor {PATH}"
    if isinstance(image, bytes) and given[0]:
        return decoders.decode_square(image, prepared)  # opens bytes as well
    if isinstance(path, str | Path) and given[1]:
        return decoders.decode_square(Path(path), prepared)
    return "its image is not bytes, base64 in JSON" if given[0] else "its path is not a text"


def _is_given(value: Any) -> bool:
    """Return whether a cell holds something; an image in JSON may be empty, but not null."""
    return bool(value) if isinstance(value, str | bytes) else pd.isna(value) is not True


def _answers(
    tagger: Tagger, choose: Captioner, squares: Iterator[Square]
) -> Iterator[Mapping[str, Any]]:
    while batch := list(islice(squares, pipeline.BATCH_SIZES[tagger.device])):
        readable = [square for square in batch if not isinstance(square, str)]
        found = iter(tagger.run(np.stack(readable), "probabilities")[0] if readable else ())
        for square in batch:
            if isinstance(square, str):
                yield dict(zip(OUTPUT_COLUMNS, (None, {}, square), strict=True))
            else:
                yield _answer(choose, next(found))


def _answer(choose: Captioner, probabilities: FloatRow) -> Mapping[str, Any]:
    """Return what is said of a picture: as in tags.json, its likeliest rating among the tags."""
    said = choose(InputImage(Path(), Path()), probabilities)
    given = list(said.tags)
    if said.rating and said.rating not in given:
        given = sorted([*given, said.rating], key=lambda one: -one.confidence)
    tags = {one.name: round(one.confidence, 6) for one in given}
    rating = said.rating.name if said.rating else None
    return dict(zip(OUTPUT_COLUMNS, (rating, tags, None), strict=True))


set_model(ServedTagger())
