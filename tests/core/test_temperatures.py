"""Temperatures are read from calibration.json as they were written, or refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.predictions import make_tags
from tagger.core import calibration
from tagger.core.errors import TaggerError


def test_temperatures_survive_the_file(tmp_path: Path) -> None:
    calibration.write({"all": 1.25, "general": 0.75}, tmp_path / "calibration.json")
    assert calibration.read(tmp_path / "calibration.json") == {"all": 1.25, "general": 0.75}


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"temperatures": {"all": 0}}', '{"temperatures": {"all": "warm"}}', "{"]
)
def test_another_file_is_refused(write_file: Callable[[str, str], Path], text: str) -> None:
    with pytest.raises(TaggerError, match=r"calibration\.json"):
        calibration.read(write_file("calibration.json", text))


def test_a_category_without_a_temperature_is_refused() -> None:
    with pytest.raises(TaggerError, match="no category 'character'"):
        calibration.per_tag({"all": 1.0, "general": 1.0}, make_tags(4), "category")
