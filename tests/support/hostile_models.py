"""Changes by which someone who means harm prepares the folder of a model."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 32  # pixels
BULK = 1 << 20  # bytes, more than the weights of our model
HUGE = 8 << 30  # bytes, of a sparse file

Change = Callable[[Path], object]


class MaliciousPickle:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.proof),)


def edit_file(name: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def replace_content(name: str, data: bytes) -> Change:
    return edit_file(name, lambda _: data)


def make_huge(name: str) -> Change:
    """Make a file as long as a disk, without writing it."""
    return lambda folder: os.truncate(folder / name, HUGE)


def replace_by_link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


def edit_preprocess_stage(place: int, **settings: Any) -> Change:
    """Change a stage of preprocess.json."""

    def change(data: bytes) -> bytes:
        stages = json.loads(data)
        stages["test"][place] |= settings
        return json.dumps(stages).encode()

    return edit_file("preprocess.json", change)


def edit_tag_row(name: str, threshold: str = "0") -> Change:
    """Give the third tag another name and threshold."""

    def change(data: bytes) -> bytes:
        rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
        rows[3][1], rows[3][4] = name, threshold
        written = io.StringIO(newline="")
        csv.writer(written, lineterminator="\n").writerows(rows)
        return written.getvalue().encode()

    return edit_file("selected_tags.csv", change)


def replace_graph(
    more: int = 0,
    value: float = 0.1,
    shape: list[int] | None = None,
    at: str = "",
    end: str = "Sigmoid",
) -> Change:
    """Replace the model by a small graph.

    more: outputs beyond the number of tags
    shape: the shape that the weights declare, whatever they hold
    at: the file that the weights are said to be in
    end: the operator after the logits
    """

    def change(folder: Path) -> None:
        tags = len((folder / "selected_tags.csv").read_text().splitlines()) - 1 + more
        weights = numpy_helper.from_array(np.full((3, tags), value, np.float32), "weights")
        if shape:
            del weights.dims[:]
            weights.dims.extend(shape)
        if at:
            weights.ClearField("raw_data")
            weights.data_location = TensorProto.EXTERNAL
            for key, text in (("location", at), ("length", str(12 * tags))):
                weights.external_data.add(key=key, value=text)
            (folder.parent / "secret").write_bytes(bytes(12 * tags))
        inputs = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])
        outputs = helper.make_tensor_value_info("prediction", TensorProto.FLOAT, None)
        nodes = [
            helper.make_node("GlobalAveragePool", ["input"], ["means"]),
            helper.make_node("Flatten", ["means"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
            helper.make_node(end, ["logits"], ["prediction"]),
        ]
        model_graph = helper.make_graph(nodes, "small", [inputs], [outputs], [weights])
        model = helper.make_model(
            model_graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        )
        onnx.save(model, folder / "model.onnx")

    return change


def weights_outside_folder(folder: Path) -> None:
    """Name weights outside the folder by their absolute path."""
    replace_graph(at=str(folder.parent / "secret"))(folder)


def weights_by_link(folder: Path) -> None:
    """Name weights in a file of the folder that links to one outside."""
    (folder / "weights").symlink_to("../secret")
    replace_graph(at="weights")(folder)
