"""Experiments that DVC makes from the same commit are children of one run."""

from pathlib import Path

import pytest

from support import processes
from support.mlflow_stores import all_runs, client, project, read_run
from tagger.tracking import runs

__all__ = ["project"]

TRACKED = """
from tagger.tracking import runs  # which the process that forks has loaded
with runs.start("vit"):
    pass
"""
ONE, OTHER = "da80dae4046ca1fd16429f9bc47d950e06db44bc", "0" * 40


def experiment(monkeypatch: pytest.MonkeyPatch, name: str, baseline: str) -> str:
    """Return the id of a run made as `dvc exp run` would have it."""
    monkeypatch.setenv("DVC_EXP_NAME", name)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", baseline)
    with runs.start("vit") as run:
        run.log_metrics({"loss": 1.0}, step=1)
    return str(run.id)


def parent_of(project: Path, run_id: str) -> str | None:
    return read_run(project, run_id).data.tags.get("mlflow.parentRunId")


def test_experiments_from_one_commit_have_one_parent(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (("brave-otter", ONE), ("calm-heron", ONE), ("dire-wolf", OTHER))
    runs = [experiment(monkeypatch, *each) for each in names]
    first, second, third = (parent_of(project, run) for run in runs)
    assert first == second != third
    assert None not in (first, third)
    assert len(all_runs(project)) == 5
    parent = read_run(project, first)
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "experiments from da80dae")
    assert parent.data.tags["dvc_baseline"] == ONE
    assert parent.data.tags["mlflow.note.content"].startswith("One way to tell")
    assert parent_of(project, first or "") is None
    tags = read_run(project, runs[0]).data.tags
    assert tags["dvc_experiment"] == "brave-otter"
    assert read_run(project, runs[0]).data.metrics == {"loss": 1.0}


def test_without_an_experiment_of_dvc_there_is_no_parent(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", ONE)
    with runs.start("vit") as run:
        pass
    assert parent_of(project, str(run.id)) is None
    assert len(all_runs(project)) == 1


def test_a_parent_that_was_deleted_is_made_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = experiment(monkeypatch, "brave-otter", ONE)
    before = parent_of(project, first)
    client(project).delete_run(str(before))
    after = parent_of(project, experiment(monkeypatch, "calm-heron", ONE))
    assert after not in (None, before)


def test_experiments_that_start_at_the_same_time_make_one_parent(project: Path) -> None:
    script = project / "script.py"
    script.write_text(TRACKED, encoding="utf-8")
    workers = []
    for name in ("brave-otter", "calm-heron", "dire-wolf"):
        dvc = {"DVC_ROOT": str(project), "DVC_EXP_BASELINE_REV": ONE, "DVC_EXP_NAME": name}
        workers.append(processes.start(project, script, **dvc))
    assert [worker.finish(120) for worker in workers] == [(0, "")] * 3
    children = [run for run in all_runs(project) if "dvc_experiment" in run.data.tags]
    parents = {run.data.tags["mlflow.parentRunId"] for run in children}
    assert (len(children), len(parents), len(all_runs(project))) == (3, 1, 4)
