"""Fixtures that tests of robustness share."""

import pytest

from support import malformed_images
from support.malformed_images import MalformedImage


@pytest.fixture(scope="session")
def malformed(tmp_path_factory: pytest.TempPathFactory) -> list[MalformedImage]:
    """All malformed images, and two valid ones, in one folder."""
    return malformed_images.write_all(tmp_path_factory.mktemp("malformed") / "files")
