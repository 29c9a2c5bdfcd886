"""Split posts so that each tag is in each split by its fraction, and groups stay together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.filesize import decimal
from scipy.sparse import coo_array, csr_array

from tagger.core.errors import TaggerError
from tagger.split import stratify

Labels = csr_array  # boolean (posts, tags)
SplitIndices = npt.NDArray[np.int8]  # (posts,), the number of each post's split
Groups = npt.NDArray[np.int64]  # (posts,), posts with the same number stay together

_MAX_SPLITS = 127
MAX_PAIRS = 50_000_000  # of tags on the same post
_PAIR_BYTES = 60  # at the peak
MAX_LABELS = 5_000_000  # for scikit-multilearn
_LABEL_BYTES = 140  # of its lists of Python objects, measured


def stratified(
    labels: Any,
    fractions: Sequence[float],
    *,
    groups: Groups | None = None,
    seed: int = 0,
    order: int = 1,
) -> SplitIndices:
    """Return the split of each post, (posts,), by iterative stratification over whole groups.

    labels: SciPy CSR array or matrix, (posts, tags), non-zero where a post has a tag
    fractions: of the posts, for each split; they sum to 1
    groups: (posts,), posts with the same number stay together; None: each post on its own
    order: 2 balances pairs of tags, too, if they are on enough posts for each split, at some
        cost to single tags; Szymański and Kajdanowicz 2017,
        https://proceedings.mlr.press/v74/szyma%C5%84ski17a.html

    The rarest remaining tag is assigned first, each group to the split that is not full and lacks
    most posts of that tag, then most posts, then at random. Sechidis et al. 2011,
    https://doi.org/10.1007/978-3-642-23808-6_10. Then groups are moved if that balances their
    tags. Each split ends within the size of the largest group of its own size.

    Raises TaggerError if labels, fractions and groups do not fit together.
    """
    labels, group_of = _check(labels, fractions, groups)
    if order == 2:
        labels = _with_pairs(labels, min(fractions))
    return stratify.assign(labels, group_of, fractions, seed)[group_of]


def iterative(
    labels: Any,
    fractions: Sequence[float],
    *,
    groups: Groups | None = None,
    seed: int = 0,
    order: int = 1,
) -> SplitIndices:
    """Return the split of each post, (posts,), by scikit-multilearn's IterativeStratification.

    The reference for `stratified`, with the same arguments. It takes minutes instead of seconds,
    and is refused if it would take hours. It draws from NumPy's global generator, which is seeded
    for it and restored.
    """
    labels, group_of = _check(labels, fractions, groups)
    if labels.nnz > MAX_LABELS:
        raise TaggerError(
            f"split.method iterative would hold {labels.nnz:,} labels as Python objects, about "
            f"{decimal(labels.nnz * _LABEL_BYTES)}, and take hours. Use stratified: the same in "
            "seconds."
        )
    if len(fractions) == 1:
        return np.zeros(labels.shape[0], dtype=np.int8)
    from skmultilearn.model_selection import IterativeStratification

    labels = _by_group(labels, group_of)
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        folds = IterativeStratification(len(fractions), order, list(fractions))
        split_of = np.empty(labels.shape[0], dtype=np.int8)
        for number, (_, members) in enumerate(folds.split(split_of, labels.tolil())):
            split_of[members] = number
    finally:
        np.random.set_state(state)
    return split_of[group_of]


def random(
    labels: Any, fractions: Sequence[float], *, groups: Groups | None = None, seed: int = 0
) -> SplitIndices:
    """Return a random split of each post, (posts,); arguments as for `stratified`."""
    _, group_of = _check(labels, fractions, groups)
    order = np.random.default_rng(seed).permutation(group_of.max() + 1)
    return fill_in_order(order, group_of, fractions)


def fill_in_order(order: Groups, group_of: Groups, fractions: Sequence[float]) -> SplitIndices:
    """Return the split of each post, (posts,), if groups fill one split after the other.

    order: (groups,), their numbers; group_of: (posts,), numbered from 0
    """
    sizes = np.bincount(group_of)[order]
    middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    split_of = np.empty(len(order), dtype=np.int8)
    split_of[order] = np.searchsorted(np.cumsum(fractions)[:-1], middle)
    return split_of[group_of]


def number_groups(groups: Groups | None, posts: int) -> Groups:
    """Return the group of each post, (posts,), numbered from 0."""
    if groups is None:
        return np.arange(posts)
    return np.asarray(np.unique(groups, return_inverse=True)[1])


def check_split_sizes(splits: SplitIndices, labels: Labels, names: Sequence[str]) -> None:
    """Raise TaggerError if a split is too small to train or evaluate on."""
    for number, name in enumerate(names):
        members = splits == number
        if not members.any():
            raise TaggerError(f"The split {name} has no post. Add images or raise split.{name}.")
        if not np.diff(labels.indptr)[members].any():
            raise TaggerError(
                f"No post of the split {name} has a tag of the vocabulary. Add images, "
                f"raise split.{name} or lower vocabulary.min_count."
            )


def _check(labels: Any, fractions: Sequence[float], groups: Groups | None) -> tuple[Labels, Groups]:
    """Return the labels, each once, and each post's group, numbered from 0."""
    labels = csr_array(labels)
    posts, tags = labels.shape
    if not 1 <= len(fractions) <= _MAX_SPLITS or not all(fraction > 0 for fraction in fractions):
        raise TaggerError(f"Fractions {list(fractions)}: 1 to {_MAX_SPLITS}, all above 0.")
    if abs(sum(fractions) - 1) > 1e-6:
        raise TaggerError(f"Fractions {list(fractions)} sum to {sum(fractions):g}, not 1.")
    if not tags:
        raise TaggerError("The vocabulary is empty. Lower vocabulary.min_count.")
    if labels.indices.max(initial=0) >= tags or labels.indices.min(initial=0) < 0:
        raise TaggerError(f"A label is out of range: there are {tags:,} tags.")
    if groups is not None and np.shape(groups) != (posts,):
        raise TaggerError(f"There are {np.size(groups):,} group numbers for {posts:,} posts.")
    group_of = number_groups(groups, posts)
    if group_of.max(initial=-1) + 1 < len(fractions):
        raise TaggerError(
            f"{group_of.max(initial=-1) + 1} groups of posts cannot fill {len(fractions)} splits. "
            "Add images, or use fewer splits."
        )
    labels = csr_array((labels.data != 0, labels.indices, labels.indptr), shape=labels.shape)
    if not (labels.has_canonical_format and labels.data.all()):
        labels = labels.copy()
        labels.eliminate_zeros()
        labels.sum_duplicates()
    return labels, group_of


def _by_group(labels: Labels, group_of: Groups) -> Labels:
    """Return the tags of each group, (groups, tags)."""
    posts = np.arange(len(group_of))
    members = coo_array((np.ones(len(posts), np.bool_), (group_of, posts)))
    return csr_array(members.tocsr() @ labels)


def _with_pairs(labels: Labels, smallest: float) -> Labels:
    """Return the labels with a further column for each pair of tags that can be balanced.

    Such a pair is on enough posts for the split of the smallest fraction to have one.
    """
    posts, tags = labels.shape
    ends = np.repeat(labels.indptr[1:], np.diff(labels.indptr))
    followers = ends - np.arange(labels.nnz) - 1  # tags that follow on the same post
    pairs = int(followers.sum(dtype=np.int64))
    if pairs > MAX_PAIRS:
        raise TaggerError(
            f"split.order 2: the posts have {pairs:,} pairs of tags, which need about "
            f"{decimal(pairs * _PAIR_BYTES)}. Use order 1, or a smaller vocabulary."
        )
    first = np.repeat(np.arange(labels.nnz), followers)
    starts = np.repeat(np.cumsum(followers) - followers, followers)
    second = first + 1 + np.arange(pairs) - starts
    codes = labels.indices[first].astype(np.int64) * tags + labels.indices[second]
    _, column, counts = np.unique(codes, return_inverse=True, return_counts=True)
    frequent = counts[column] * smallest >= 1
    row = np.repeat(np.arange(posts), np.diff(labels.indptr))
    rows = np.concatenate([row, row[first[frequent]]])
    columns = np.concatenate([labels.indices, tags + column[frequent]])
    shape = (posts, tags + len(counts))
    return csr_array((np.ones(len(rows), np.bool_), (rows, columns)), shape=shape)
