"""The load of the machine is logged while a training runs: no longer, and never at its cost."""

import threading
import time
from pathlib import Path

import pytest

from support.mlflow_stores import client, project, read_run
from tagger.tracking import runs

__all__ = ["project"]

USED = "system/cpu_utilization_percentage"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point every tenth of a second, by MLflow's own variables."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "2")


def watchers() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "SystemMetricsMonitor"]


def points(project: Path, run_id: str | None) -> list[int]:
    history = client(project).get_metric_history(str(run_id), USED)
    return sorted(point.step for point in history)


def test_the_load_is_logged_until_the_run_ends(project: Path) -> None:
    with runs.start("vit") as run:
        assert watchers()
        time.sleep(1)
    assert not watchers()
    logged = points(project, run.id)
    assert len(logged) > 1
    with runs.start("vit", run_id=run.id):
        time.sleep(1)
    again = points(project, run.id)
    assert again[: len(logged)] == logged
    assert again == list(range(len(again)))  # one curve, across the break
    assert len(again) > len(logged)


def test_a_run_that_is_added_to_is_not_watched(project: Path) -> None:
    with runs.start("vit") as run:
        pass
    with runs.add_to(run.id):
        assert not watchers()


def test_a_short_run_has_no_load(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL")
    monkeypatch.delenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING")
    begun = time.monotonic()
    with runs.start("vit") as run:
        run.log_metrics({"loss": 1.0}, step=1)
        time.sleep(0.3)
    assert time.monotonic() - begun < 5
    assert read_run(project, run.id).data.metrics == {"loss": 1.0}


def test_mlflows_own_switch_turns_it_off(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with runs.start("vit"):
        assert not watchers()


def test_a_machine_that_tells_nothing_does_not_stop_a_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    for name in ("cpu_percent", "virtual_memory", "disk_usage", "net_io_counters"):
        monkeypatch.setattr(f"psutil.{name}", refuse)
    with runs.start("vit") as run:
        run.log_metrics({"loss": 1.0}, step=1)
        time.sleep(0.3)
    kept = read_run(project, run.id)
    assert (kept.data.metrics, kept.info.status) == ({"loss": 1.0}, "FINISHED")
    assert not caplog.records
