"""The best run on the same data gets a registered model, a version and an alias."""

import math
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from support.mlflow_stores import client, project, read_run, unreachable_address
from tagger.core.errors import TaggerError
from tagger.tracking import registry, runs

__all__ = ["project"]

METRIC = "test.macro_ap"
BEST = Path("models/tagger/model.safetensors")


def track_training(
    name: str, value: float | None, data: str = "abc", *, tracks: bool = True
) -> str:
    """Return the id of a run with a test metric and checkpoints."""
    with runs.start(name, preset=name, data=data) as run:
        run.log_metrics({"macro_ap": 0.5}, step=3)
        if tracks:
            run.log_checkpoint("last", Path("models/tagger/last.safetensors"), {"macro_ap": 0.5}, 3)
            run.log_checkpoint("best", BEST, {"macro_ap": 0.5}, 3, "ab12")
    if value is not None:
        with runs.add_to(run.id) as again:
            again.log_metrics({"test": {"macro_ap": value}})
    return str(run.id)


def aliases_of(project: Path, name: str = "tagger") -> dict[str, list[str]]:
    """Return the aliases of each version."""
    store_client: MlflowClient = client(project)
    versions = [
        str(each.version) for each in store_client.search_model_versions(f"name = '{name}'")
    ]
    aliases = store_client.get_registered_model(name).aliases.items()
    return {
        number: [alias for alias, version in aliases if str(version) == number]
        for number in versions
    }


def test_best_run_has_the_highest_metric_on_the_same_data(project: Path) -> None:
    for name, value, data in (
        ("low", 0.5, "abc"),
        ("high", 0.75, "abc"),
        ("other", 0.9, "def"),
        ("failed", math.nan, "abc"),
        ("not evaluated", None, "abc"),
    ):
        track_training(name, value, data, tracks=False)
    names = {data: registry.best_run(METRIC, data).info.run_name for data in ("abc", "def")}
    assert names == {"abc": "high", "def": "other"}
    for metric, data in ((METRIC, "ghi"), ("test.none", "abc")):
        with pytest.raises(TaggerError, match="no run that was evaluated on this data"):
            registry.best_run(metric, data)


def test_model_is_registered_once_and_its_alias_moves(project: Path) -> None:
    runs = [read_run(project, track_training(name, 0.5)) for name in ("vit", "swin")]
    first = registry.register(runs[0], "tagger", "champion")
    assert tuple(first) == ("tagger", "1", "champion", runs[0], str(BEST))
    summary = f"vit, {METRIC} 0.500: version 1 of tagger, alias champion, weights in {BEST}"
    assert first.summary(METRIC) == summary
    second = registry.register(runs[1], "tagger", "champion")
    assert second.number == "2"
    assert aliases_of(project) == {"1": [], "2": ["champion"]}
    assert registry.register(runs[0], "tagger", "champion") == first
    assert aliases_of(project) == {"1": ["champion"], "2": []}
    registry.register(runs[0], "tagger", "challenger")
    assert sorted(aliases_of(project)["1"]) == ["challenger", "champion"]


def test_model_version_names_its_run_and_file(project: Path) -> None:
    run = read_run(project, track_training("vit", 0.5))
    registry.register(run, "tagger", "champion")
    version = client(project).get_model_version_by_alias("tagger", "champion")
    assert version.run_id == run.info.run_id
    assert str(version.description) == f"best of vit, {BEST}"
    tags = {"preset": "vit", "data": "abc", "file": str(BEST), "step": "3", "sha256": "ab12"}
    assert version.tags.items() >= tags.items()
    assert version.tags["git_commit"] == run.data.tags["git_commit"]


def test_loadable_model_is_registered_before_a_checkpoint(project: Path) -> None:
    run, store_client = read_run(project, track_training("vit", 0.5)), client(project)
    model = store_client.create_logged_model(run.info.experiment_id, "export", run.info.run_id)
    store_client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    assert registry.register(run, "tagger", "champion").file == ""
    version = store_client.get_model_version_by_alias("tagger", "champion")
    assert version.source == f"models:/{model.model_id}"


def test_run_without_a_model_is_refused(project: Path) -> None:
    run = read_run(project, track_training("vit", 0.5, tracks=False))
    with pytest.raises(TaggerError, match=r"vit .* has no model .* train again"):
        registry.register(run, "tagger", "champion")


@pytest.mark.parametrize(("name", "alias"), [("a/b", "best"), ("tagger", "v1"), ("tagger", "a b")])
def test_invalid_name_or_alias_is_an_error(project: Path, name: str, alias: str) -> None:
    run = read_run(project, track_training("vit", 0.5))
    with pytest.raises(TaggerError, match=r"^MLflow at sqlite:[^\n]*(Invalid|reserved)[^\n]*$"):
        registry.register(run, name, alias)


def test_unreadable_store_is_an_error(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(project, track_training("vit", 0.5))
    (project / "mlflow.db").write_bytes(b"this is no database, and never was one\n" * 40)
    with pytest.raises(TaggerError, match=r"not a database[^\n]*MLFLOW_TRACKING_URI"):
        registry.best_run(METRIC, "abc")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unreachable_address())
    with pytest.raises(TaggerError, match=r"^MLflow at http://127\.0\.0\.1"):
        registry.register(run, "tagger", "champion")
