"""Under torchrun each process does its part, and no two write the same file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.system.world import read_world


def test_the_world_without_torchrun_is_one_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert read_world() == (0, 1, 0, 1)
    assert read_world().file_suffix == ""
    assert read_world().cores >= 1


@pytest.mark.parametrize(
    "given", [{"RANK": "2", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "many"}, {"LOCAL_RANK": "-1"}]
)
def test_a_world_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TaggerError, match="Start with torchrun"):
        read_world()


def test_two_processes_tag_every_image_once(
    run_infer: Callable[..., int], image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image_folder / "b.png").write_bytes(b"no image")
    monkeypatch.setenv("WORLD_SIZE", "2")
    rest = ("--recursive", "--output", "csv", "--embeddings", "seen.npz")
    for rank, code in ((0, 0), (1, 1)):
        monkeypatch.setenv("RANK", str(rank))
        assert run_infer(image_folder, *rest) == code
    shares = [
        {Path(row["file"]).name for row in files.read_csv(Path(f"tags.rank{rank}.csv"))}
        for rank in (0, 1)
    ]
    assert shares == [{"a.png", "c.png"}, {"d.png"}]
    assert {path.name for path in Path().iterdir()} == {
        "tags.rank0.csv",
        "tags.rank1.csv",
        "seen.rank0.npz",
        "seen.rank1.npz",
        "infer_failures.rank1.csv",
    }
