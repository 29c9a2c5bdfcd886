"""A run holds what was tried, on which data, and how good it was; resuming and adding keep it."""

import json
import threading
import time
from pathlib import Path

import mlflow
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from support.mlflow_stores import all_runs, client, project, read_run
from tagger.tracking import machine, runs, store

pytestmark = pytest.mark.usefixtures("project")
__all__ = ["project"]

POSTS = Path("data/posts.parquet")
FIVE, TWO, ONE = ({"images": count, "tags": 3, "labels": 3 * count} for count in (5, 2, 1))
CPU = "system/cpu_utilization_percentage"


@pytest.fixture
def fast_system_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point every tenth of a second, by MLflow's own variables."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "2")


def test_run_keeps_parameters_metrics_tags_and_files(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "brave-otter")
    (project / "train.csv").write_text("epoch,loss\n1,9\n")
    with runs.start("vit", preset="vit", posts="abc") as run:
        run.log_params({"seed": 0, "train": {"epochs": 3, "deep": {"er": "x"}}})
        for epoch, loss in ((1, 9.0), (2, 7.5)):
            run.log_metrics({"loss": loss, "note": "text", "test": {"macro_ap": 0.1}}, step=epoch)
        run.log_files(project / "train.csv", under="tables")
        run.log_figure(Figure(), "plots/f1.png")
        run.log_figure(Figure(), "pr_curve.svg")
    stored = read_run(project, run.id)
    assert stored.data.params == {"seed": "0", "train.epochs": "3", "train.deep.er": "x"}
    assert stored.data.metrics == {"loss": 7.5, "test.macro_ap": 0.1}
    history = client(project).get_metric_history(stored.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 9.0), (2, 7.5)]
    expected = {"preset": "vit", "posts": "abc", "dvc_experiment": "brave-otter"}
    assert stored.data.tags.items() >= expected.items()
    assert len(stored.data.tags["git_commit"]) == 40
    assert (stored.info.run_name, stored.info.status) == ("vit", "FINISHED")
    artifacts = project / "mlruns" / str(run.id) / "artifacts"
    files = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*.*")}
    assert files == {"tables/train.csv", "plots/f1.png", "pr_curve.svg"}
    assert (artifacts / "plots/f1.png").read_bytes().startswith(b"\x89PNG")


def test_invalid_names_are_changed_and_many_parameters_are_logged(project: Path) -> None:
    with runs.start("vit", **{"weights (1)": "abc"}) as run:
        run.log_params({f"key {number}": number for number in range(250)} | {"a=b": "x" * 9000})
        run.log_metrics({"test": {"f1 (macro)": 0.5}})
    data = read_run(project, run.id).data
    assert data.tags["weights _1_"] == "abc"
    assert len(data.params) == 251
    assert set(data.params["a_b"]) == {"x"}
    assert data.metrics == {"test.f1 _macro_": 0.5}


def test_numeric_leaves_of_an_interval_are_low_and_high() -> None:
    nested = {"test": {"macro_ap": 0.5, "intervals": {"macro_ap": [0.4, 0.6], "tags": ["a", "b"]}}}
    assert runs.numeric_leaves(nested) == {
        "test.macro_ap": 0.5,
        "test.intervals.macro_ap.low": 0.4,
        "test.intervals.macro_ap.high": 0.6,
    }
    mixed = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None, "f": {}}
    assert runs.flatten(mixed) == {"a.b.c": 1, "a.d": [1, 2], "e": None}


def test_many_metrics_of_a_split_are_one_request(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    log_batch = MlflowClient.log_batch

    def counted(self: MlflowClient, *args: object, **options: list[object]) -> None:
        sizes.append(len(options["metrics"]))
        log_batch(self, *args, **options)  # type: ignore[arg-type]

    with runs.start("vit") as run:
        monkeypatch.setattr(MlflowClient, "log_batch", counted)
        run.log_metrics({"test": {f"tag_{number}": [0.1, 0.2] for number in range(200)}})
    assert sizes == [400]
    assert len(read_run(project, run.id).data.metrics) == 400


def test_run_names_data_with_hash_and_counts(project: Path) -> None:
    with runs.start("vit") as run:
        run.log_data("demo", "0123abcd", POSTS, {"training": FIVE, "validation": TWO})
    with runs.add_to(run.id) as again:
        again.log_data("demo", "0123abcd", POSTS, {"validation": TWO, "test": ONE})
        again.log_metrics({"test": {"macro_ap": 0.5}})
    inputs = getattr(read_run(project, run.id).inputs, "dataset_inputs", [])
    datasets = {each.tags[0].value: each.dataset for each in inputs}
    assert len(inputs) == len(datasets) == 3
    assert {each.tags[0].key for each in inputs} == {"mlflow.data.context"}
    names = {split: dataset.name for split, dataset in datasets.items()}
    assert names == {split: f"demo-{split}" for split in ("training", "validation", "test")}
    assert {dataset.digest for dataset in datasets.values()} == {"0123abcd"}
    assert datasets["training"].source == '{"uri": "data/posts.parquet"}'
    assert json.loads(datasets["training"].profile or "") == FIVE


def test_data_digest_depends_on_all_hashes_of_data() -> None:
    hashes = {"posts": "a", "vocabulary": "b", "split": "c"}
    others = {runs.data_digest(hashes | {name: "d"}) for name in hashes}
    assert len({*others, runs.data_digest(hashes)}) == 4
    assert runs.data_digest(hashes | {"init_from": "d"}) == runs.data_digest(hashes)


def test_run_names_versions_device_and_packages(project: Path) -> None:
    with runs.start("vit") as run:
        run.log_machine()
    stored = read_run(project, run.id)
    assert stored.data.tags.items() >= machine.machine_tags().items()
    assert {"python", "torch", "timm", "device"} <= machine.machine_tags().keys()
    lines = (project / "mlruns" / stored.info.run_id / "artifacts/packages.txt").read_text()
    assert f"mlflow=={mlflow.__version__}\n" in lines
    assert lines.splitlines() == sorted(set(lines.splitlines()), key=str.lower)


def test_adding_to_a_run_changes_nothing_else(project: Path) -> None:
    with runs.start("vit", preset="vit") as first:
        first.log_params({"seed": 0})
    before = read_run(project, first.id)
    time.sleep(0.01)
    with runs.add_to(first.id) as again:
        for value in (0.75, 0.25):
            again.log_metrics({"test": {"macro_f1": value}})
            time.sleep(0.01)
    after = read_run(project, first.id)
    assert again.id == first.id
    assert (after.data.params, after.data.metrics) == ({"seed": "0"}, {"test.macro_f1": 0.25})
    assert after.data.tags == before.data.tags
    assert dict(after.info) == dict(before.info)
    assert len(all_runs(project)) == 1
    with pytest.raises(ValueError), runs.add_to(first.id):
        raise ValueError
    assert dict(read_run(project, first.id).info) == dict(before.info)
    with runs.add_to(None) as nothing:
        nothing.log_metrics({"loss": 1.0})
    assert len(all_runs(project)) == 1


def test_run_without_an_end_has_finished_once_it_is_added_to(project: Path) -> None:
    with runs.start("vit") as first:
        pass
    client(project).update_run(str(first.id), "RUNNING")
    with runs.add_to(first.id):
        pass
    assert read_run(project, first.id).info.status == "FINISHED"


def test_resumed_training_continues_its_run(project: Path) -> None:
    with pytest.raises(KeyboardInterrupt), runs.start("vit") as first:
        raise KeyboardInterrupt
    with runs.start("vit", run_id=first.id) as again:
        assert read_run(project, first.id).info.status == "RUNNING"
    assert again.id == first.id
    assert read_run(project, first.id).info.status == "FINISHED"
    assert len(all_runs(project)) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failing_block_leaves_a_failed_run(project: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), runs.start("vit") as run:
        raise error
    assert read_run(project, run.id).info.status == "FAILED"
    assert mlflow.active_run() is None


def test_run_needs_no_git(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project))
    with runs.start("vit", preset="vit") as run:
        run.log_params({"seed": 0})
    assert read_run(project, run.id).data.tags["preset"] == "vit"


def test_checkpoints_are_logged_models_with_metrics_by_data(project: Path) -> None:
    with runs.start("vit") as run:
        run.log_data("demo", "0123abcd", POSTS, {"validation": TWO})
        for step in (1, 2):
            run.log_metrics({"macro_ap": step / 4}, step)
        run.log_checkpoint("best", Path("models/best.safetensors"), {"macro_ap": 0.25}, 1, "ab12")
        run.log_checkpoint("last", Path("models/last.safetensors"), {"macro_ap": 0.5}, 2)
    with runs.add_to(run.id) as again:
        again.log_data("demo", "0123abcd", POSTS, {"test": ONE})
        again.log_metrics({"test": {"macro_ap": 0.75}}, checkpoint="best")
    models = store.logged_models(str(run.id))
    assert models.keys() == {"best", "last"}
    tags = {"file": "models/best.safetensors", "step": "1", "sha256": "ab12"}
    assert models["best"].tags.items() >= tags.items()
    metrics = {
        name: {(m.key, m.value, m.step, m.dataset_name) for m in model.metrics or []}
        for name, model in models.items()
    }
    assert metrics["last"] == {("macro_ap", 0.5, 2, "demo-validation")}
    assert metrics["best"] == {
        ("macro_ap", 0.25, 1, "demo-validation"),
        ("test.macro_ap", 0.75, 0, "demo-test"),
    }
    stored = read_run(project, run.id)
    outputs = getattr(stored.outputs, "model_outputs", [])
    assert {(output.model_id, output.step) for output in outputs} == {
        (models["best"].model_id, 1),
        (models["last"].model_id, 2),
    }
    assert not getattr(stored.inputs, "model_inputs", [])
    assert stored.data.metrics == {"macro_ap": 0.5, "test.macro_ap": 0.75}
    history = client(project).get_metric_history(str(run.id), "macro_ap")
    assert [(point.step, point.value) for point in history] == [(1, 0.25), (2, 0.5)]


def test_checkpoint_is_tracked_once_if_a_training_ends_twice(project: Path) -> None:
    def end_training(run_id: str | None, sha256: str) -> str | None:
        with runs.start("vit", run_id=run_id) as run:
            run.log_metrics({"macro_ap": 0.5}, 2)
            for name in ("best", "last"):
                run.log_checkpoint(name, Path(f"{name}.safetensors"), {"macro_ap": 0.5}, 2, sha256)
        return run.id

    def tracked_names() -> list[str]:
        experiment = read_run(project, run_id).info.experiment_id
        return sorted(model.name for model in client(project).search_logged_models([experiment]))

    run_id = end_training(None, "ab12")
    assert end_training(run_id, "ab12") == run_id
    assert tracked_names() == ["best", "last"]
    end_training(run_id, "cd34")
    assert tracked_names() == ["best", "best", "last", "last"]


def monitors() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name == "SystemMetricsMonitor"]


@pytest.mark.usefixtures("fast_system_metrics")
def test_system_metrics_are_one_curve_until_the_run_ends(project: Path) -> None:
    def steps() -> list[int]:
        return sorted(p.step for p in client(project).get_metric_history(str(run.id), CPU))

    with runs.start("vit") as run:
        assert monitors()
        time.sleep(0.5)
    assert not monitors()
    before = steps()
    assert len(before) > 1
    with runs.add_to(run.id):
        assert not monitors()
    with runs.start("vit", run_id=run.id):
        time.sleep(0.5)
    assert steps() == list(range(len(steps())))
    assert len(steps()) > len(before)


def test_short_run_has_no_system_metrics(project: Path) -> None:
    started = time.monotonic()
    with runs.start("vit") as run:
        run.log_metrics({"loss": 1.0}, step=1)
        time.sleep(0.1)
    assert time.monotonic() - started < 5
    assert read_run(project, run.id).data.metrics == {"loss": 1.0}


def test_mlflow_variable_turns_system_metrics_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with runs.start("vit"):
        assert not monitors()


@pytest.mark.usefixtures("fast_system_metrics")
def test_machine_without_system_metrics_does_not_stop_a_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    for name in ("cpu_percent", "virtual_memory", "disk_usage", "net_io_counters"):
        monkeypatch.setattr(f"psutil.{name}", refuse)
    with runs.start("vit") as run:
        run.log_metrics({"loss": 1.0}, step=1)
        time.sleep(0.3)
    stored = read_run(project, run.id)
    assert (stored.data.metrics, stored.info.status) == ({"loss": 1.0}, "FINISHED")
    assert not caplog.records
