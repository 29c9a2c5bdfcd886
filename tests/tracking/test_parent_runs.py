"""DVC experiments from the same commit are children of one parent run."""

from pathlib import Path

import pytest

from support import processes
from support.mlflow_stores import all_runs, client, project, read_run
from tagger.tracking import runs

__all__ = ["project"]

SCRIPT = """
from tagger.tracking import runs  # loaded already in the process that forks
with runs.start("vit"):
    pass
"""
COMMIT, OTHER_COMMIT = "da80dae4046ca1fd16429f9bc47d950e06db44bc", "0" * 40


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
    names = (("brave-otter", COMMIT), ("calm-heron", COMMIT), ("dire-wolf", OTHER_COMMIT))
    children = [experiment(monkeypatch, *each) for each in names]
    first, second, third = (parent_of(project, child) for child in children)
    assert first == second != third
    assert None not in (first, third)
    assert len(all_runs(project)) == 5
    parent = read_run(project, first)
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "experiments from da80dae")
    assert parent.data.tags["dvc_baseline"] == COMMIT
    assert parent.data.tags["mlflow.note.content"].startswith("One way to tell")
    assert parent_of(project, first or "") is None
    tags = read_run(project, children[0]).data.tags
    assert tags["dvc_experiment"] == "brave-otter"
    assert read_run(project, children[0]).data.metrics == {"loss": 1.0}


def test_run_outside_a_dvc_experiment_has_no_parent(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", COMMIT)
    with runs.start("vit") as run:
        pass
    assert parent_of(project, str(run.id)) is None
    assert len(all_runs(project)) == 1


def test_deleted_parent_is_made_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = experiment(monkeypatch, "brave-otter", COMMIT)
    before = parent_of(project, first)
    client(project).delete_run(str(before))
    after = parent_of(project, experiment(monkeypatch, "calm-heron", COMMIT))
    assert after not in (None, before)


def test_experiments_started_together_make_one_parent(project: Path) -> None:
    script = project / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    workers = []
    for name in ("brave-otter", "calm-heron", "dire-wolf"):
        dvc = {"DVC_ROOT": str(project), "DVC_EXP_BASELINE_REV": COMMIT, "DVC_EXP_NAME": name}
        workers.append(processes.start(project, script, **dvc))
    assert [worker.finish(120) for worker in workers] == [(0, "")] * 3
    children = [run for run in all_runs(project) if "dvc_experiment" in run.data.tags]
    parents = {run.data.tags["mlflow.parentRunId"] for run in children}
    assert (len(children), len(parents), len(all_runs(project))) == (3, 1, 4)
