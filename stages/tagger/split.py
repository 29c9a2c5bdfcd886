"""Part the posts into training, validation and test, tag by tag, without parting a group."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array

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
    https://doi.org/10.1007/978-3-642-23808-6_10.
    """
    labels, group_of = _by_group(labels, groups)
    sizes = np.bincount(group_of)
    random = np.random.default_rng(seed)
    order = random.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))

    wanted_posts = np.asarray(proportions) * sizes.sum()  # (parts,)
    wanted = np.outer(labels.sum(axis=0), proportions)  # (tags, parts)
    left = np.asarray((labels > 0).sum(axis=0)).astype(np.float64)  # groups to deal, per tag
    part_of = np.full(len(sizes), -1, dtype=np.int8)
    by_tag = labels.tocsc()

    def deal(group: int, preference: npt.NDArray[np.float64]) -> None:
        noise = random.random(len(proportions))
        part = np.lexsort((noise, wanted_posts, preference, wanted_posts > 0))[-1]
        part_of[group] = part
        tags = slice(labels.indptr[group], labels.indptr[group + 1])
        wanted[labels.indices[tags], part] -= labels.data[tags]
        left[labels.indices[tags]] -= 1
        wanted_posts[part] -= sizes[group]

    while (left > 0).any():
        tag = int(np.where(left > 0, left, np.inf).argmin())
        having = by_tag.indices[by_tag.indptr[tag] : by_tag.indptr[tag + 1]]
        for group in sorted(having[part_of[having] < 0], key=rank.__getitem__):
            deal(group, wanted[tag])
        left[tag] = 0
    for group in order[part_of[order] < 0]:  # groups without a tag
        deal(group, wanted_posts)
    return part_of[group_of]


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
    if groups is None:
        groups = np.arange(posts)
    _, group_of = np.unique(groups, return_inverse=True)
    members = coo_array((np.ones(posts), (group_of, np.arange(posts))))
    return csr_array(members.tocsr() @ labels), group_of


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
