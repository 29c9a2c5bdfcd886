"""Figures are those of scikit-learn and torchmetrics, ties included, compiled and not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    coverage_error,
    label_ranking_average_precision_score,
    log_loss,
    matthews_corrcoef,
    precision_recall_fscore_support,
)
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multilabel_average_precision,
    multilabel_f1_score,
    multilabel_matthews_corrcoef,
    multilabel_ranking_average_precision,
)

from support.predictions import (
    RandomPredictions,
    TemporaryStore,
    compile_always,
    make_tags,
    random_predictions,
    small_predictions,
)
from tagger.core.arrays import Floats, Scores
from tagger.core.logits import sigmoid
from tagger.evaluation import counting, quantized_logits, ranking, score_counts, tag_metrics
from tagger.evaluation.counting import Ints
from tagger.evaluation.ranking import Ranking
from tagger.evaluation.report import charts
from tagger.evaluation.score_counts import ScoreCounts
from tagger.evaluation.tag_metrics import MetricTree


def measure(
    predictions: RandomPredictions, limit: float = 0.4, unlabelled: list[Ints] | None = None
) -> tuple[ScoreCounts, Ranking, MetricTree]:
    listed = make_tags(predictions.truth.shape[1])
    limits = np.full(len(listed), limit)
    with TemporaryStore(predictions, unlabelled=unlabelled or []) as scored:
        counted = score_counts.count(
            scored,
            tag_metrics.pool_numbers(listed),
            thresholds=score_counts.evaluation_thresholds(limits),
        )
        ranked = ranking.rank_labels(scored)
    return counted, ranked, tag_metrics.summarize(counted, listed, ranked)


def shares(logits: Scores) -> Floats:
    return sigmoid(logits)


@pytest.fixture(params=["plain", "compiled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "compiled":
        compile_always(monkeypatch)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("density", "steps"), [(0.3, 0), (0.02, 0), (0.5, 4), (0.98, 0)])
def test_figures_of_tags_are_scikit_learns(density: float, steps: int) -> None:
    predictions = random_predictions(400, 7, density=density, steps=steps)
    counted, *_ = measure(predictions)
    given_ = shares(predictions.logits) >= 0.4
    each = tag_metrics.decision_metrics(*counted.decisions(0))
    for tag, truth in enumerate(predictions.truth.T):
        if not truth.any():
            assert np.isnan(counted.average_precision[tag])
            continue
        logits, chosen = predictions.logits[:, tag], given_[:, tag]
        p = shares(logits)
        assert counted.average_precision[tag] == pytest.approx(
            average_precision_score(truth, logits), abs=1e-9
        )
        theirs = precision_recall_fscore_support(truth, chosen, average="binary", zero_division=0)
        ours = [each[name][tag] for name in ("precision", "recall", "f1")]
        assert ours == pytest.approx(theirs[:3], abs=1e-9)
        assert each["mcc"][tag] == pytest.approx(matthews_corrcoef(truth, chosen), abs=1e-9)
        squares, loss = counted.error_sums[tag] / len(truth)
        assert squares == pytest.approx(brier_score_loss(truth, p, pos_label=True), abs=1e-9)
        assert loss == pytest.approx(log_loss(truth, p, labels=[False, True]), abs=1e-6)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("seed", range(3))
def test_figures_over_all_tags_are_scikit_learns_and_torchmetrics(seed: int) -> None:
    predictions = random_predictions(300, 9, seed, steps=[0, 0, 6][seed])
    counted, ranked, summary = measure(predictions)
    truth, logits = predictions.truth, predictions.logits
    p, y = torch.tensor(shares(logits)), torch.tensor(truth, dtype=torch.long)
    for average in ("macro", "micro"):
        f1 = multilabel_f1_score(p, y, num_labels=9, average=average, threshold=0.4)
        assert summary[f"{average}_f1"] == pytest.approx(float(f1), abs=2e-6)
        ap = multilabel_average_precision(p, y, num_labels=9, average=average)
        assert summary[f"{average}_ap"] == pytest.approx(float(ap), abs=2e-6)
        theirs = average_precision_score(truth, logits, average=average)
        assert summary[f"{average}_ap"] == pytest.approx(theirs, abs=1e-6)
    error = binary_calibration_error(p.flatten(), y.flatten(), n_bins=15, norm="l1")
    assert summary["ece"] == pytest.approx(float(error), abs=1e-6)
    mcc = multilabel_matthews_corrcoef(p, y, num_labels=9, threshold=0.4)
    assert summary["micro_mcc"] == pytest.approx(float(mcc), abs=2e-6)
    assert summary["brier"] == pytest.approx(((shares(logits) - truth) ** 2).mean(), abs=1e-6)
    nats = torch.nn.functional.binary_cross_entropy(p, y.double(), reduction="sum") / 300
    assert summary["loss"] == pytest.approx(float(nats), abs=1e-5)
    assert ranked.loss.sum() == pytest.approx(counted.error_sums[:, 1].sum())
    assert summary["coverage"] == pytest.approx(coverage_error(truth, logits), abs=1e-6)
    precision = label_ranking_average_precision_score(truth, logits)
    assert summary["label_ranking_ap"] == pytest.approx(precision, abs=1e-6)
    if seed < 2:  # where scores tie, torchmetrics ranks as they come
        ranks = multilabel_ranking_average_precision(p, y, num_labels=9)
        assert summary["label_ranking_ap"] == pytest.approx(float(ranks), abs=2e-6)


@settings(max_examples=60)
@given(small_predictions())
def test_ranking_is_scikit_learns_for_each_picture(predictions: RandomPredictions) -> None:
    if predictions.truth.shape[1] == 1:  # which scikit-learn takes for two classes
        return
    for limit in (-1, 600_000):
        with pytest.MonkeyPatch.context() as patch, TemporaryStore(predictions) as scored:
            patch.setattr(ranking, "_INTERPRETED", limit)
            ranked = ranking.rank_labels(scored)
        for row, (logits, truth) in enumerate(zip(*predictions, strict=True)):
            assert ranked.coverage[row] == coverage_error(truth[None], logits[None])
            precision = label_ranking_average_precision_score(truth[None], logits[None])
            assert ranked.label_ranking_ap[row] == pytest.approx(precision)


@settings(max_examples=60)
@given(small_predictions())
def test_the_compiled_loop_counts_as_numpy_does(predictions: RandomPredictions) -> None:
    plain, ranked, _ = measure(predictions)
    with pytest.MonkeyPatch.context() as patch:
        compile_always(patch)
        compiled, also, _ = measure(predictions)
    for name in score_counts.ScoreCounts.__dataclass_fields__:
        assert np.allclose(getattr(compiled, name), getattr(plain, name)), name
    for one, other in zip(ranked, also, strict=True):
        assert one == pytest.approx(other)


@settings(max_examples=40)
@given(small_predictions())
def test_marks_count_what_is_at_least_as_high(predictions: RandomPredictions) -> None:
    coded = quantized_logits.quantize(predictions.logits)
    random = np.random.default_rng(0)
    marks = np.stack([random.choice(column, 4) for column in coded.T]).astype(np.uint16)
    with TemporaryStore(predictions) as scored:
        counted = score_counts.count(
            scored, tag_metrics.pool_numbers(make_tags(len(marks))), thresholds=marks
        )
    for mark in range(4):
        high = coded >= marks[:, mark]
        true, given_, *_ = counted.decisions(mark)
        assert given_.tolist() == high.sum(axis=0).tolist()
        assert true.tolist() == (high & predictions.truth).sum(axis=0).tolist()


@pytest.mark.usefixtures("way")
def test_what_is_unknown_counts_for_nothing() -> None:
    predictions = random_predictions(120, 6)
    predictions.truth[::3, :2] = False
    known = predictions.truth[:, :2].any(axis=1)
    counted, ranked, summary = measure(predictions, unlabelled=[np.array([0, 1])])
    alone, *_ = measure(RandomPredictions(predictions.logits[known], predictions.truth[known]))
    assert counted.labelled.tolist() == [known.sum()] * 2 + [120] * 4
    assert counted.average_precision[:2] == pytest.approx(alone.average_precision[:2])
    assert counted.at_thresholds[:2] == pytest.approx(alone.at_thresholds[:2])
    assert summary["unknown"] == 2 * (~known).sum()
    rest, labels = predictions.logits[~known][:, 2:], predictions.truth[~known][:, 2:]
    assert ranked.coverage[~known].mean() == pytest.approx(coverage_error(labels, rest))
    precision = label_ranking_average_precision_score(labels, rest)
    assert ranked.label_ranking_ap[~known].mean() == pytest.approx(precision)


@pytest.mark.usefixtures("way")
def test_tags_without_a_positive_are_left_out_and_counted() -> None:
    predictions = random_predictions(80, 5)
    predictions.truth[:, 3] = False
    _, _, summary = measure(predictions)
    has = predictions.truth.any(axis=0)
    assert (summary["tags"], summary["unsupported"], summary["images"]) == (4, 1, 80)
    theirs = average_precision_score(predictions.truth[:, has], predictions.logits[:, has])
    assert summary["macro_ap"] == pytest.approx(theirs, abs=1e-6)


@pytest.mark.usefixtures("way")
def test_a_tag_on_every_picture_is_perfect_and_correlates_with_nothing() -> None:
    predictions = random_predictions(80, 3)
    predictions.truth[:, 1] = True
    counted, *_ = measure(predictions, limit=1e-4)
    assert counted.average_precision[1] == 1
    each = tag_metrics.decision_metrics(*counted.decisions(0))
    assert (each["f1"][1], each["mcc"][1]) == (1, 0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("pictures", [0, 3])
def test_where_no_picture_has_a_tag_figures_are_zero(pictures: int) -> None:
    predictions = random_predictions(pictures, 3, density=0)
    counted, _, summary = measure(predictions)
    assert {summary[name] for name in ("macro_ap", "micro_ap", "macro_f1", "micro_f1")} == {0}
    assert (summary["images"], summary["unsupported"]) == (pictures, 3)
    assert charts.pr_rows(counted) == []
    assert len(list(charts.f1_rows(counted))) == len(score_counts.CURVE_THRESHOLDS)


def test_pictures_may_be_left_out() -> None:
    predictions = random_predictions(90, 4)
    left_out = np.arange(90) % 3 == 0
    pools = tag_metrics.pool_numbers(make_tags(4))
    with TemporaryStore(predictions) as scored:
        counted = score_counts.count(scored, pools, excluded=left_out)
    with TemporaryStore(
        RandomPredictions(predictions.logits[~left_out], predictions.truth[~left_out])
    ) as rest:
        alone = score_counts.count(rest, pools)
    assert counted.average_precision == pytest.approx(alone.average_precision)
    assert np.array_equal(counted.pools, alone.pools)


def test_many_predictions_are_counted_by_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert counting._INTERPRETED < 20_000 * 2_000
    called = []
    monkeypatch.setattr(counting, "always", lambda _: lambda *arguments: called.append(arguments))
    starts = np.zeros(2, np.int64)
    rows = np.empty(0, np.int64)
    pool = np.zeros(1, np.int64)
    marks = np.empty((1, 0), np.uint16)
    counting.count(np.zeros((1, 600_000), np.uint16), starts, rows, marks, pool, 1)
    assert not called
    counting.count(np.zeros((1, 600_001), np.uint16), starts, rows, marks, pool, 1)
    assert called
