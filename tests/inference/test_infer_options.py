"""Options of infer.py for captions, mistakes in them, and images that cannot be read."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tagger import params
from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.inference import cli, threshold_choice
from tagger.inference.pipeline import PipelineOptions
from tagger.inference.threshold_choice import ThresholdChoice
from tagger.params import Params

Infer = Callable[..., int]
Sidecar = Callable[..., list[str]]


@pytest.fixture
def sidecar(run_infer: Infer, image_folder: Path) -> Sidecar:
    """Return the tags of the sidecar of image a.png."""

    def sidecar(*options: object) -> list[str]:
        base = ("--output", "txt", "--overwrite", "--threshold", "0.3")
        assert run_infer(image_folder / "a.png", *base, *options) == 0
        return (image_folder / "a.txt").read_text(encoding="utf-8").rstrip("\n").split(", ")

    return sidecar


def test_sidecars_have_underscores_unless_spaces_are_asked_for(sidecar: Sidecar) -> None:
    plain = sidecar()
    assert any("_" in tag for tag in plain)
    assert sidecar("--underscores") == plain
    assert sidecar("--spaces") == [tag.replace("_", " ") for tag in plain]


def test_sidecars_for_prompts_have_weights_and_escaped_parentheses(
    sidecar: Sidecar, scores: dict[str, float]
) -> None:
    plain = sidecar()
    assert sidecar("--confidence") == [f"({tag}:{scores[tag]:.2f})" for tag in plain]
    escaped = [tag.replace("(", r"\(").replace(")", r"\)") for tag in plain]
    assert sidecar("--escape-parentheses") == escaped


def test_words_go_first_and_names_are_replaced(sidecar: Sidecar) -> None:
    plain = sidecar()
    front = sidecar("--always-first", "sks", "--always-first", plain[2], "--spaces")
    spaced = [tag.replace("_", " ") for tag in plain]
    assert front == ["sks", spaced[2], *spaced[:2], *spaced[3:]]
    assert sidecar("--replace", f"{plain[0]}=mine") == ["mine", *plain[1:]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", ThresholdChoice(0.5)),
        ("best", ThresholdChoice("best")),
        ("category", ThresholdChoice("category")),
        ("general=0.3, character=1", ThresholdChoice("best", {"general": 0.3, "character": 1.0})),
    ],
)
def test_thresholds_are_parsed_in_every_form(text: str, expected: ThresholdChoice) -> None:
    assert threshold_choice.parse_thresholds(text) == expected


MISTAKES = [
    (["--threshold", "genral=0.3"], "no category 'genral'. Did you mean 'general'?"),
    (["--threshold", "general=2"], "2 is not between 0 and 1"),
    (["--threshold", "nan"], "nan is not between 0 and 1"),
    (["--threshold", "half"], "'half' is no number, nor best, category, or like general=0.3,"),
    (["--categories", "general,hair"], "there is no category 'hair'"),
    (["--top", "0"], "0 is not 1 or more"),
    (["--workers", "-1"], "-1 is not 0 or more"),
    (["--batch-size", "many"], "many is not 1 or more"),
    (["--batch-size", "-3"], "-3 is not 1 or more"),
    (["--timeout", "0"], "0 is no number of seconds above 0"),
    (["--replace", "old"], "'old' is not of the form old=new"),
    (["--embeddings", "seen.csv"], "seen.csv must end in .npz or .parquet"),
    (["--output", "xml"], "--output"),
    (["--append", "--output", "csv"], "--append is for --output txt"),
    (["--skip-existing"], "--output text has nothing to skip"),
    (["--confidence", "--output", "json"], "--confidence is for --output txt"),
    (["--append", "--overwrite", "--output", "txt"], "not allowed with argument"),
    (["--spaces", "--underscores"], "not allowed with argument"),
    (["--implications", "remove", "--rules", "."], ". holds no implications"),
    (["--model", "."], "error: . is no tagger: an export lacks model.onnx"),
    (["--model", "none.onnx"], "error: . is no tagger: an export lacks none.onnx"),
    (["--model", "none"], "trained model lacks model.safetensors, config.json"),
    (["--model", "none"], "Run `dvc repro`"),
    (["none.png"], "error: There is no image or folder none.png."),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_ends_with_exit_code_2_one_line_and_nothing_written(
    run_infer: Infer,
    image_folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run_infer(image_folder, *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err.splitlines()[-1]
    assert not captured.out
    assert not list(Path().iterdir())
    assert not list(image_folder.glob("*.txt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["."], "no images there. With --recursive, subfolders are searched too."),
        ([".", "--recursive"], "no images there."),
        ([], "input"),
    ],
)
def test_no_images_end_with_exit_code_2(
    run_infer: Infer, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_infer(*arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_two_images_never_share_a_sidecar(
    run_infer: Infer, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = tmp_path / "twin"
    twin.mkdir()
    shutil.copyfile(image_folder / "b.png", twin / "a.png")
    shutil.copyfile(image_folder / "b.png", image_folder / "a.webp")
    assert run_infer(image_folder, "--output", "txt") == 2
    assert "a.txt" in capsys.readouterr().err
    out = tmp_path / "out"
    assert run_infer(image_folder / "a.png", twin, "--output", "txt", "--output-dir", out) == 2
    assert "a.txt" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("output", ["text", "txt", "json", "csv"])
def test_an_unreadable_image_is_listed_and_the_others_tagged(
    run_infer: Infer, image_folder: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "b.png").write_bytes(b"no image")
    assert run_infer(image_folder, "--output", output) == 1
    (failure,) = files.read_csv(Path("infer_failures.csv"))
    assert failure["file"] == str(image_folder / "b.png")
    assert failure["reason"] == "unreadable image"
    assert failure["detail"]
    summary = capsys.readouterr().err
    assert "tagged: 2 images" in summary
    assert "failed: 1 images, see infer_failures.csv" in summary


def test_nothing_but_unreadable_images_makes_an_empty_table(
    run_infer: Infer, image_folder: Path
) -> None:
    (image_folder / "a.png").write_bytes(b"")
    assert run_infer(image_folder / "a.png", "--output", "json") == 1
    assert json.loads(Path("tags.json").read_text()) == []


def test_a_name_that_is_no_utf_8_costs_no_other_image(
    run_infer: Infer, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.rename(image_folder / "b.png", os.fsencode(image_folder) + b"/\xc4\xe3.png")  # noqa: PTH104
    for output in ("text", "json", "csv"):
        assert run_infer(image_folder, "--output", output, "--threshold", 0.5) in (0, 1)
    assert str(image_folder / "a.png") in capsys.readouterr().out


def test_without_cuda_infer_warns_and_uses_the_cpu(
    run_infer: Infer,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run_infer(image_folder, "--device", "cuda") == 0
    assert "CUDA is not available, going on with the CPU." in caplog.messages


def test_thresholds_of_categories_need_their_table(
    run_infer: Infer,
    image_folder: Path,
    export_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("model.onnx", "selected_tags.csv", "preprocess.json"):
        (tmp_path / name).hardlink_to(export_folder / name)
    assert run_infer(image_folder, "--model", tmp_path, "--threshold", "category") == 2
    assert "thresholds.csv, which is missing" in capsys.readouterr().err


def test_a_closed_pipe_ends_infer_without_an_error(
    root: Path, export_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, root / "stages" / "infer.py", image_folder, "--model", export_folder]
    started = subprocess.Popen(
        list(map(str, command)),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    started.stdout.close()
    assert started.stderr is not None
    assert "Traceback" not in started.stderr.read()
    assert started.wait(timeout=20) == 0
    started.stderr.close()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("batch_size: lots", "infer.batch_size is 'lots'. Input should be a valid integer"),
        ("workers: -1", "infer.workers is -1. Input should be greater than or equal to 0."),
        ("timeout: 0", "infer.timeout is 0. Input should be greater than 0."),
    ],
)
def test_defaults_come_from_the_parameters_and_are_checked_there(
    root: Path, tmp_path: Path, setting: str, message: str
) -> None:
    default = (root / params.PATH).read_text(encoding="utf-8")
    before, after = default.split("\ninfer:", 1)
    key = setting.partition(":")[0]
    changed = re.sub(rf"(?m)^  {key}: \S+", f"  {setting}", after, count=1)
    (tmp_path / "params.yaml").write_text(f"{before}\ninfer:{changed}", encoding="utf-8")
    with pytest.raises(TaggerError, match=re.escape(message)):
        params.load(tmp_path / "params.yaml")


def test_auto_is_a_process_for_each_core_and_the_batch_size_of_the_device(
    default_params: Params, root: Path
) -> None:
    def pipeline(*arguments: str) -> PipelineOptions:
        return cli.parse_args(["x", *arguments], default_params.infer, root, 5).pipeline

    assert pipeline() == PipelineOptions(batch_size=None, workers=5, timeout=60)
    changed = pipeline("--workers", "0", "--batch-size", "3")
    assert changed == PipelineOptions(batch_size=3, workers=0, timeout=60)
