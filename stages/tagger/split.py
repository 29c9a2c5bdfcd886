"""Part the posts into training, validation and test, tag by tag, without parting a group."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array

from tagger import stratify
from tagger.errors import TaggerError

Parts = npt.NDArray[np.int8]  # (posts,), the number of each post's part


def stratified(
    labels: csr_array,
    proportions: Sequence[float],
    *,
    groups: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Parts:
    """Return the part of each post, (posts,), by iterative stratification over whole groups.

    labels: (posts, tags), non-zero where a post has a tag
    proportions: share of the posts wanted in each part, summing to 1
    groups: (posts,), posts with the same number stay together; None: each post on its own

    The rarest tag left is dealt out first, each group to the part, of those not yet full, that
    lacks most posts of that tag, then most posts, then at random. Sechidis et al. 2011,
    https://doi.org/10.1007/978-3-642-23808-6_10. Then single posts are moved where that evens the
    shares of their tags; the sizes stay.
    """
    labels = csr_array(labels, copy=not labels.has_canonical_format or not labels.data.all())
    labels.sum_duplicates()
    labels.eliminate_zeros()
    group_of = _numbered(groups, labels.shape[0])
    return stratify.assign(labels, group_of, proportions, seed)[group_of]


def iterative(
    labels: csr_array,
    proportions: Sequence[float],
    *,
    groups: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Parts:
    """Return the part of each post, (posts,), by scikit-multilearn's IterativeStratification.

    The reference for `stratified`, with the same arguments; minutes where that takes seconds.
    It draws from NumPy's global generator, which is seeded for it and put back.
    """
    from skmultilearn.model_selection import IterativeStratification

    labels, group_of = _by_group(labels, groups)
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        folds = IterativeStratification(len(proportions), 1, list(proportions))
        part_of = np.empty(labels.shape[0], dtype=np.int8)
        for part, (_, members) in enumerate(folds.split(part_of, labels.astype(bool).tolil())):
            part_of[members] = part
    finally:
        np.random.set_state(state)
    return part_of[group_of]


def random(
    labels: csr_array,
    proportions: Sequence[float],
    *,
    groups: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Parts:
    """Return the part of each post, (posts,), drawn at random; arguments as for `stratified`."""
    labels, group_of = _by_group(labels, groups)
    sizes = np.bincount(group_of)
    order = np.random.default_rng(seed).permutation(len(sizes))
    middle = (np.cumsum(sizes[order]) - sizes[order] / 2) / sizes.sum()
    part_of = np.empty(len(sizes), dtype=np.int8)
    part_of[order] = np.searchsorted(np.cumsum(proportions)[:-1], middle)
    return part_of[group_of]


METHODS: dict[str, Callable[..., Parts]] = {
    "stratified": stratified,
    "iterative": iterative,
    "random": random,
}


def _by_group(
    labels: csr_array, groups: npt.NDArray[np.int64] | None
) -> tuple[csr_array, npt.NDArray[np.int64]]:
    """Return how many posts of each group have each tag, (groups, tags), and each post's group."""
    posts = labels.shape[0]
    group_of = _numbered(groups, posts)
    members = coo_array((np.ones(posts), (group_of, np.arange(posts))))
    return csr_array(members.tocsr() @ labels), group_of


def _numbered(groups: npt.NDArray[np.int64] | None, posts: int) -> npt.NDArray[np.int64]:
    """Return the group of each post, (posts,), numbered from 0."""
    if groups is None:
        return np.arange(posts)
    return np.asarray(np.unique(groups, return_inverse=True)[1])


def check(parts: Parts, labels: csr_array, names: Sequence[str]) -> None:
    """Raise TaggerError where a part is too small to train or judge on."""
    for part, name in enumerate(names):
        members = parts == part
        if not members.any():
            raise TaggerError(
                f"No post falls to {name}. Bring more pictures or raise split.{name}."
            )
        if not labels[members].nnz:
            raise TaggerError(
                f"No post of {name} has a tag of the vocabulary. Bring more pictures, "
                f"raise split.{name} or lower vocabulary.min_count."
            )


def report(parts: Parts, labels: csr_array, names: Sequence[str]) -> dict[str, Any]:
    """Return sizes, and how far each tag's share in each part is from the part's own share.

    Deviations are in shares of a tag's posts, 0 to 1.
    """
    totals = np.asarray(labels.sum(axis=0)).ravel()
    report: dict[str, Any] = {"posts": len(parts)}
    for part, name in enumerate(names):
        members = parts == part
        inside = np.asarray(labels[members].sum(axis=0)).ravel()
        deviation = np.abs(inside[totals > 0] / totals[totals > 0] - members.mean())
        report[name] = {
            "posts": int(members.sum()),
            "tags_without_post": int((inside == 0).sum()),
            "mean_deviation": round(float(deviation.mean()), 6),
            "worst_deviation": round(float(deviation.max()), 6),
        }
    return report
