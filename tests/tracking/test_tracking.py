"""A run holds what was tried, on what, and what came of it."""

import json
import time
from pathlib import Path

import mlflow
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from support.mlflow_stores import all_runs, client, make_split, project, read_run
from tagger.tracking import machine, runs, store

pytestmark = pytest.mark.usefixtures("project")
__all__ = ["project"]

SOURCE = Path("data/posts.parquet")


def test_a_run_keeps_parameters_metrics_tags_and_files(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "brave-otter")
    (project / "train.csv").write_text("epoch,loss\n1,9\n")
    with runs.start("vit", preset="vit", posts="abc") as run:
        run.log_params({"seed": 0, "train": {"epochs": 3, "deep": {"er": "x"}}})
        for epoch, loss in ((1, 9.0), (2, 7.5)):
            run.log_metrics({"loss": loss, "note": "text", "test": {"macro_ap": 0.1}}, step=epoch)
        run.log_files(project / "train.csv")
    kept = read_run(project, run.id)
    assert kept.data.params == {"seed": "0", "train.epochs": "3", "train.deep.er": "x"}
    assert kept.data.metrics == {"loss": 7.5, "test.macro_ap": 0.1}
    history = client(project).get_metric_history(kept.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 9.0), (2, 7.5)]
    assert kept.data.tags.items() >= {
        ("preset", "vit"),
        ("posts", "abc"),
        ("dvc_experiment", "brave-otter"),
    }
    assert len(kept.data.tags["git_commit"]) == 40
    assert (kept.info.run_name, kept.info.status) == ("vit", "FINISHED")
    assert (project / "mlruns" / kept.info.run_id / "artifacts" / "train.csv").is_file()


def test_names_that_mlflow_does_not_take_are_changed_and_long_lists_cut(project: Path) -> None:
    with runs.start("vit", **{"weights (1)": "abc"}) as run:
        run.log_params({f"key {number}": number for number in range(250)} | {"a=b": "x" * 9000})
        run.log_metrics({"test": {"f1 (macro)": 0.5}})
    kept = read_run(project, run.id).data
    assert kept.tags["weights _1_"] == "abc"
    assert len(kept.params) == 251
    assert set(kept.params["a_b"]) == {"x"}
    assert kept.metrics == {"test.f1 _macro_": 0.5}


def test_an_interval_is_two_numbers() -> None:
    nested = {"test": {"macro_ap": 0.5, "intervals": {"macro_ap": [0.4, 0.6], "tags": ["a", "b"]}}}
    assert runs.numeric_leaves(nested) == {
        "test.macro_ap": 0.5,
        "test.intervals.macro_ap.low": 0.4,
        "test.intervals.macro_ap.high": 0.6,
    }


def test_many_figures_are_one_call(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    log_batch = MlflowClient.log_batch

    def counted(self: MlflowClient, *args: object, **kwargs: list[object]) -> None:
        sizes.append(len(kwargs["metrics"]))
        log_batch(self, *args, **kwargs)  # type: ignore[arg-type]

    with runs.start("vit") as run:
        monkeypatch.setattr(MlflowClient, "log_batch", counted)
        run.log_metrics({"test": {f"tag_{number}": [0.1, 0.2] for number in range(200)}})
    assert sizes == [400]
    assert len(read_run(project, run.id).data.metrics) == 400


def test_a_run_tells_on_what_it_was_trained_and_judged(project: Path) -> None:
    with runs.start("vit") as run:
        run.log_data(
            "demo", "0123abcd", SOURCE, training=make_split(5, 3), validation=make_split(2, 3)
        )
    with runs.add_to(run.id) as again:
        again.log_data(
            "demo", "0123abcd", SOURCE, validation=make_split(2, 3), test=make_split(1, 3)
        )
    inputs = getattr(read_run(project, run.id).inputs, "dataset_inputs", [])
    told = {one.tags[0].value: one.dataset for one in inputs}
    assert len(inputs) == len(told) == 3
    assert {one.tags[0].key for one in inputs} == {"mlflow.data.context"}
    names = {context: dataset.name for context, dataset in told.items()}
    assert names == {context: f"demo-{context}" for context in ("training", "validation", "test")}
    assert {dataset.digest for dataset in told.values()} == {"0123abcd"}
    assert told["training"].source == '{"uri": "data/posts.parquet"}'
    profile = json.loads(told["training"].profile or "")
    assert profile == {"pictures": 5, "tags": 3, "labels": 15}


def test_the_digest_is_of_all_hashes() -> None:
    hashes = {"posts": "a", "vocabulary": "b", "split": "c"}
    other = {runs.data_digest(hashes | {name: "d"}) for name in hashes}
    assert len({*other, runs.data_digest(hashes)}) == 4
    assert runs.data_digest(hashes | {"init_from": "d"}) == runs.data_digest(hashes)


def test_a_run_tells_what_it_ran_on(project: Path) -> None:
    with runs.start("vit") as run:
        run.log_machine()
    kept = read_run(project, run.id)
    assert kept.data.tags.items() >= machine.machine_tags().items()
    assert {"python", "torch", "timm", "device"} <= machine.machine_tags().keys()
    lines = (project / "mlruns" / kept.info.run_id / "artifacts/packages.txt").read_text()
    assert f"mlflow=={mlflow.__version__}\n" in lines
    assert lines.splitlines() == sorted(set(lines.splitlines()), key=str.lower)


def test_files_and_drawings_lie_where_they_are_wanted(project: Path) -> None:
    (project / "pr_curve.csv").write_text("recall,precision\n0.1,1.0\n1.0,0.4\n")
    with runs.start("vit") as run:
        run.log_files(project / "pr_curve.csv", under="tables")
        run.log_figure(Figure(), "drawings/f1.png")
        run.log_figure(Figure(), "pr_curve.svg")
    artifacts = project / "mlruns" / str(run.id) / "artifacts"
    files = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*.*")}
    assert files == {"tables/pr_curve.csv", "drawings/f1.png", "pr_curve.svg"}
    assert (artifacts / "drawings/f1.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_added_to_without_a_trace_but_what_is_added(project: Path) -> None:
    with runs.start("vit", preset="vit") as first:
        first.log_params({"seed": 0})
    before = read_run(project, first.id)
    time.sleep(0.01)
    with runs.add_to(first.id) as again:
        for figure in (0.75, 0.25):
            again.log_metrics({"test": {"macro_f1": figure}})
            time.sleep(0.01)
        assert read_run(project, first.id).info.status == "FINISHED"
    after = read_run(project, first.id)
    assert again.id == first.id
    assert (after.data.params, after.data.metrics) == ({"seed": "0"}, {"test.macro_f1": 0.25})
    assert after.data.tags == before.data.tags
    assert dict(after.info) == dict(before.info)
    assert len(all_runs(project)) == 1
    with pytest.raises(ValueError), runs.add_to(first.id):
        raise ValueError
    assert dict(read_run(project, first.id).info) == dict(before.info)


def test_a_run_whose_end_was_not_told_has_ended_once_it_is_judged(project: Path) -> None:
    with runs.start("vit") as first:
        pass
    client(project).update_run(str(first.id), "RUNNING")
    with runs.add_to(first.id):
        pass
    assert read_run(project, first.id).info.status == "FINISHED"


def test_a_training_takes_its_run_up_again(project: Path) -> None:
    with pytest.raises(KeyboardInterrupt), runs.start("vit") as first:
        raise KeyboardInterrupt
    with runs.start("vit", run_id=first.id) as again:
        assert read_run(project, first.id).info.status == "RUNNING"
    assert again.id == first.id
    assert read_run(project, first.id).info.status == "FINISHED"
    assert len(all_runs(project)) == 1


def test_checkpoints_are_models_of_the_run_with_figures_by_data(project: Path) -> None:
    with runs.start("vit") as run:
        run.log_data("demo", "0123abcd", SOURCE, validation=make_split(2, 3))
        for step in (1, 2):
            run.log_metrics({"macro_ap": step / 4}, step)
        run.log_checkpoint("best", Path("models/best.safetensors"), {"macro_ap": 0.25}, 1, "ab12")
        run.log_checkpoint("last", Path("models/last.safetensors"), {"macro_ap": 0.5}, 2)
    with runs.add_to(run.id) as again:
        again.log_data("demo", "0123abcd", SOURCE, test=make_split(1, 3))
        again.log_metrics({"test": {"macro_ap": 0.75}}, checkpoint="best")
    models = store.logged_models(client(project), str(run.id))
    assert models.keys() == {"best", "last"}
    tags = models["best"].tags
    assert (
        tags.items() >= {"file": "models/best.safetensors", "step": "1", "sha256": "ab12"}.items()
    )
    figures = {
        name: {(m.key, m.value, m.step, m.dataset_name) for m in model.metrics or []}
        for name, model in models.items()
    }
    assert figures["last"] == {("macro_ap", 0.5, 2, "demo-validation")}
    judged = {("macro_ap", 0.25, 1, "demo-validation"), ("test.macro_ap", 0.75, 0, "demo-test")}
    assert figures["best"] == judged
    kept = read_run(project, run.id)
    outputs = getattr(kept.outputs, "model_outputs", [])
    assert {(one.model_id, one.step) for one in outputs} == {
        (models["best"].model_id, 1),
        (models["last"].model_id, 2),
    }
    assert kept.data.metrics == {"macro_ap": 0.5, "test.macro_ap": 0.75}
    history = client(project).get_metric_history(str(run.id), "macro_ap")
    assert [(point.step, point.value) for point in history] == [(1, 0.25), (2, 0.5)]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_a_failed_run(project: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), runs.start("vit") as run:
        raise error
    assert read_run(project, run.id).info.status == "FAILED"
    assert mlflow.active_run() is None


def test_a_machine_without_git_still_trains(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project))
    with runs.start("vit", preset="vit") as run:
        run.log_params({"seed": 0})
    assert read_run(project, run.id).data.tags["preset"] == "vit"


def test_mappings_are_flattened_to_dotted_paths() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None, "f": {}}
    assert runs.flatten(nested) == {"a.b.c": 1, "a.d": [1, 2], "e": None}


def test_a_checkpoint_is_tracked_once_however_often_a_training_comes_to_its_end(
    project: Path,
) -> None:
    def end(run_id: str | None, sha256: str) -> str | None:
        with runs.start("vit", run_id=run_id) as run:
            run.log_metrics({"macro_ap": 0.5}, 2)
            for name in ("best", "last"):
                run.log_checkpoint(name, Path(f"{name}.safetensors"), {"macro_ap": 0.5}, 2, sha256)
        return run.id

    def logged() -> list[str]:
        found = client(project).search_logged_models([read_run(project, run).info.experiment_id])
        return sorted(model.name for model in found)

    run = end(None, "ab12")
    assert end(run, "ab12") == run
    assert logged() == ["best", "last"]
    end(run, "cd34")
    assert logged() == ["best", "best", "last", "last"]
