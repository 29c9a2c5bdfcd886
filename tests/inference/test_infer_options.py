"""What each option of infer.py promises for captions, and what does not go together."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tagger import params
from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.inference import cli, threshold_choice
from tagger.inference.threshold_choice import ThresholdChoice
from tagger.params import Params

Infer = Callable[..., int]


@pytest.fixture
def captioned(run_infer: Infer, image_folder: Path) -> Callable[..., list[str]]:
    """Return the tags of the sidecar of picture a.png."""

    def captioned(*arguments: object) -> list[str]:
        rest = ("--output", "txt", "--overwrite", "--threshold", "0.3")
        assert run_infer(image_folder / "a.png", *rest, *arguments) == 0
        return (image_folder / "a.txt").read_text(encoding="utf-8").rstrip("\n").split(", ")

    return captioned


def test_captions_have_underscores_unless_spaces_are_asked_for(
    captioned: Callable[..., list[str]],
) -> None:
    plain = captioned()
    assert any("_" in tag for tag in plain)
    assert captioned("--underscores") == plain
    assert captioned("--spaces") == [tag.replace("_", " ") for tag in plain]


def test_captions_for_prompts_have_weights_and_escaped_parentheses(
    captioned: Callable[..., list[str]], run_infer: Infer, image_folder: Path
) -> None:
    assert run_infer(image_folder / "a.png", "--output", "csv", "--threshold", "0.3") == 0
    scores = {row["tag"]: float(row["confidence"]) for row in files.read_csv(Path("tags.csv"))}
    plain = captioned()
    assert captioned("--confidence") == [f"({tag}:{scores[tag]:.2f})" for tag in plain]
    escaped = [tag.replace("(", r"\(").replace(")", r"\)") for tag in plain]
    assert captioned("--escape-parentheses") == escaped


def test_words_go_first_and_names_are_replaced(captioned: Callable[..., list[str]]) -> None:
    plain = captioned()
    front = captioned("--always-first", "sks", "--always-first", plain[2], "--spaces")
    spaced = [tag.replace("_", " ") for tag in plain]
    assert front == ["sks", spaced[2], *spaced[:2], *spaced[3:]]
    assert captioned("--replace", f"{plain[0]}=mine") == ["mine", *plain[1:]]


def test_skipped_pictures_are_not_tagged(
    run_infer: Infer, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_infer(image_folder, "--recursive", "--skip", "b.*", "--skip", "inner/*") == 0
    assert capsys.readouterr().out.count("Image:") == 2


def test_a_glob_that_the_shell_left_is_expanded(
    run_infer: Infer, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_infer(image_folder / "[ab].png") == 0
    assert capsys.readouterr().out.count("Image:") == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", ThresholdChoice(0.5)),
        ("best", ThresholdChoice("best")),
        ("category", ThresholdChoice("category")),
        ("general=0.3, character=1", ThresholdChoice("best", {"general": 0.3, "character": 1.0})),
    ],
)
def test_thresholds_are_read_in_every_form(text: str, expected: ThresholdChoice) -> None:
    assert threshold_choice.parse_thresholds(text) == expected


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--threshold", "genral=0.3"], "no category 'genral'. Did you mean 'general'?"),
        (["--threshold", "general=2"], "2 is not between 0 and 1"),
        (["--threshold", "half"], "'half' is no number, nor best, category, or like general=0.3,"),
        (["--categories", "general,hair"], "there is no category 'hair'"),
        (["--top", "0"], "0 is not 1 or more"),
        (["--workers", "-1"], "-1 is not 0 or more"),
        (["--batch-size", "many"], "many is not 1 or more"),
        (["--timeout", "0"], "0 is no number of seconds above 0"),
        (["--replace", "old"], "'old' is not of the form old=new"),
        (["--embeddings", "seen.csv"], "seen.csv must end in .npz or .parquet"),
        (["--append", "--output", "csv"], "--append is for --output txt"),
        (["--skip-existing"], "--output text has nothing to skip"),
        (["--confidence", "--output", "json"], "--confidence is for --output txt"),
        (["--append", "--overwrite", "--output", "txt"], "not allowed with argument"),
        (["--spaces", "--underscores"], "not allowed with argument"),
        (["--implications", "remove", "--rules", "."], ". holds no implications"),
        (["--model", "."], ". is no tagger: an export lacks model.onnx"),
        (["--model", "none.onnx"], ". is no tagger: an export lacks none.onnx"),
    ],
)
def test_what_makes_no_sense_ends_with_2_and_nothing_written(
    run_infer: Infer,
    image_folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    assert run_infer(image_folder, *arguments) == 2
    captured = capsys.readouterr()
    assert told in captured.err.splitlines()[-1]
    assert not captured.out
    assert not list(Path().iterdir())
    assert not list(image_folder.glob("*.txt"))


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


def test_a_reader_that_has_seen_enough_breaks_nothing(
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
    ("given", "told"),
    [
        ("batch_size: lots", "infer.batch_size is 'lots'. Input should be a valid integer"),
        ("workers: -1", "infer.workers is -1. Input should be greater than or equal to 0."),
        ("timeout: 0", "infer.timeout is 0. Input should be greater than 0."),
    ],
)
def test_defaults_come_from_the_parameters_and_are_checked_there(
    root: Path, tmp_path: Path, given: str, told: str
) -> None:
    shipped = (root / params.PATH).read_text(encoding="utf-8")
    before, after = shipped.split("\ninfer:", 1)
    key = given.partition(":")[0]
    changed = re.sub(rf"(?m)^  {key}: \S+", f"  {given}", after, count=1)
    (tmp_path / "params.yaml").write_text(f"{before}\ninfer:{changed}", encoding="utf-8")
    with pytest.raises(TaggerError, match=re.escape(told)):
        params.load(tmp_path / "params.yaml")


def test_auto_is_a_process_for_each_core_and_a_batch_that_suits_the_device(
    default_params: Params, root: Path
) -> None:
    asked = cli.parse_args(["x"], default_params.infer, root, 5)
    assert (asked.pipeline.batch_size, asked.pipeline.workers, asked.pipeline.timeout) == (
        None,
        5,
        60,
    )
    asked = cli.parse_args(
        ["x", "--workers", "0", "--batch-size", "3"], default_params.infer, root, 5
    )
    assert (asked.pipeline.batch_size, asked.pipeline.workers) == (3, 0)
