"""Part posts so that every tag is in every part by its proportion, without parting a group."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.filesize import decimal
from scipy.sparse import coo_array, csr_array

from tagger.core.errors import TaggerError
from tagger.split import stratify

Labels = csr_array  # boolean (posts, tags)
SplitIndices = npt.NDArray[np.int8]  # (posts,), the number of each post's part
Groups = npt.NDArray[np.int64]  # (posts,), posts with the same number stay together

_MOST_PARTS = 127
_MOST_PAIRS = 50_000_000  # of tags on the same post
_BYTES_OF_PAIR = 60  # at the peak
_MOST_LABELS = 5_000_000  # for scikit-multilearn
_BYTES_OF_LABEL = 140  # of its lists of Python objects, measured


def stratified(
    labels: Any,
    proportions: Sequence[float],
    *,
    groups: Groups | None = None,
    seed: int = 0,
    order: int = 1,
) -> SplitIndices:
    """Return the part of each post, (posts,), by iterative stratification over whole groups.

    labels: SciPy CSR array or matrix, (posts, tags), non-zero where a post has a tag
    proportions: share of the posts wanted in each part, summing to 1
    groups: (posts,), posts with the same number stay together; None: each post on its own
    order: 2 evens out pairs of tags, too, those on enough posts for each part, at some cost to
        single tags; Szymański and Kajdanowicz 2017,
        https://proceedings.mlr.press/v74/szyma%C5%84ski17a.html

    The rarest tag left is dealt out first, each group to the part, of those not yet full, that
    lacks most posts of that tag, then most posts, then at random. Sechidis et al. 2011,
    https://doi.org/10.1007/978-3-642-23808-6_10. Then groups are moved where that evens the shares
    of their tags. Each part ends within one largest group of its size.

    Raises TaggerError where labels, proportions and groups do not go together.
    """
    labels, group_of = _checked(labels, proportions, groups)
    if order == 2:
        labels = _with_pairs(labels, min(proportions))
    return stratify.assign(labels, group_of, proportions, seed)[group_of]


def iterative(
    labels: Any,
    proportions: Sequence[float],
    *,
    groups: Groups | None = None,
    seed: int = 0,
    order: int = 1,
) -> SplitIndices:
    """Return the part of each post, (posts,), by scikit-multilearn's IterativeStratification.

    The reference for `stratified`, with the same arguments; minutes where that takes seconds, and
    refused where it would take hours. It draws from NumPy's global generator, which is seeded for
    it and put back.
    """
    labels, group_of = _checked(labels, proportions, groups)
    if labels.nnz > _MOST_LABELS:
        raise TaggerError(
            f"split.method iterative would hold {labels.nnz:,} labels as Python objects, about "
            f"{decimal(labels.nnz * _BYTES_OF_LABEL)}, and take hours. Use stratified: the same in "
            "seconds."
        )
    if len(proportions) == 1:
        return np.zeros(labels.shape[0], dtype=np.int8)
    from skmultilearn.model_selection import IterativeStratification

    labels = _by_group(labels, group_of)
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        folds = IterativeStratification(len(proportions), order, list(proportions))
        part_of = np.empty(labels.shape[0], dtype=np.int8)
        for part, (_, members) in enumerate(folds.split(part_of, labels.tolil())):
            part_of[members] = part
    finally:
        np.random.set_state(state)
    return part_of[group_of]


def random(
    labels: Any, proportions: Sequence[float], *, groups: Groups | None = None, seed: int = 0
) -> SplitIndices:
    """Return the part of each post, (posts,), drawn at random; arguments as for `stratified`."""
    _, group_of = _checked(labels, proportions, groups)
    order = np.random.default_rng(seed).permutation(group_of.max() + 1)
    return fill_in_order(order, group_of, proportions)


def fill_in_order(order: Groups, group_of: Groups, proportions: Sequence[float]) -> SplitIndices:
    """Return the part of each post, (posts,), where groups fill one part after the other.

    order: (groups,), their numbers; group_of: (posts,), numbered from 0
    """
    sizes = np.bincount(group_of)[order]
    middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    part_of = np.empty(len(order), dtype=np.int8)
    part_of[order] = np.searchsorted(np.cumsum(proportions)[:-1], middle)
    return part_of[group_of]


def number_groups(groups: Groups | None, posts: int) -> Groups:
    """Return the group of each post, (posts,), numbered from 0."""
    if groups is None:
        return np.arange(posts)
    return np.asarray(np.unique(groups, return_inverse=True)[1])


def check_split_sizes(parts: SplitIndices, labels: Labels, names: Sequence[str]) -> None:
    """Raise TaggerError where a part is too small to train or judge on."""
    for part, name in enumerate(names):
        members = parts == part
        if not members.any():
            raise TaggerError(
                f"No post falls to {name}. Bring more pictures or raise split.{name}."
            )
        if not np.diff(labels.indptr)[members].any():
            raise TaggerError(
                f"No post of {name} has a tag of the vocabulary. Bring more pictures, "
                f"raise split.{name} or lower vocabulary.min_count."
            )


def _checked(
    labels: Any, proportions: Sequence[float], groups: Groups | None
) -> tuple[Labels, Groups]:
    """Return each label once, and each post's group, numbered from 0."""
    labels = csr_array(labels)
    posts, tags = labels.shape
    if not 1 <= len(proportions) <= _MOST_PARTS or not all(share > 0 for share in proportions):
        raise TaggerError(f"Proportions {list(proportions)}: 1 to {_MOST_PARTS}, all above 0.")
    if abs(sum(proportions) - 1) > 1e-6:
        raise TaggerError(f"Proportions {list(proportions)} sum to {sum(proportions):g}, not 1.")
    if not tags:
        raise TaggerError("The vocabulary is empty. Lower vocabulary.min_count.")
    if labels.indices.max(initial=0) >= tags or labels.indices.min(initial=0) < 0:
        raise TaggerError(f"A label is out of range: there are {tags:,} tags.")
    if groups is not None and np.shape(groups) != (posts,):
        raise TaggerError(f"{np.size(groups):,} groups are given for {posts:,} posts.")
    group_of = number_groups(groups, posts)
    if group_of.max(initial=-1) + 1 < len(proportions):
        raise TaggerError(
            f"{group_of.max(initial=-1) + 1} groups of posts cannot fill {len(proportions)} parts. "
            "Bring more pictures, or ask for fewer parts."
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
    """Return the labels with a further column for each pair of tags that can be shared out.

    Such a pair is on enough posts for the part of the smallest proportion to have one.
    """
    posts, tags = labels.shape
    ends = np.repeat(labels.indptr[1:], np.diff(labels.indptr))
    after = ends - np.arange(labels.nnz) - 1  # tags that follow on the same post
    pairs = int(after.sum(dtype=np.int64))
    if pairs > _MOST_PAIRS:
        raise TaggerError(
            f"split.order 2: the posts have {pairs:,} pairs of tags, which need about "
            f"{decimal(pairs * _BYTES_OF_PAIR)}. Use order 1, or a smaller vocabulary."
        )
    first = np.repeat(np.arange(labels.nnz), after)
    second = first + 1 + np.arange(pairs) - np.repeat(np.cumsum(after) - after, after)
    codes = labels.indices[first].astype(np.int64) * tags + labels.indices[second]
    _, column, counts = np.unique(codes, return_inverse=True, return_counts=True)
    kept = counts[column] * smallest >= 1
    row = np.repeat(np.arange(posts), np.diff(labels.indptr))
    rows = np.concatenate([row, row[first[kept]]])
    columns = np.concatenate([labels.indices, tags + column[kept]])
    shape = (posts, tags + len(counts))
    return csr_array((np.ones(len(rows), np.bool_), (rows, columns)), shape=shape)
