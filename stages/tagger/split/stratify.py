"""Iterative stratification in one pass over sparse labels, in time linear in their number.

Sechidis et al. 2011, https://doi.org/10.1007/978-3-642-23808-6_10: the rarest tag left is dealt out
first, each group of posts to the part that lacks most posts of that tag. Tags stand in lists by
the number of their posts left, so that the rarest is at hand and a post moves its tags by one list.

Memory beyond the labels: four bytes a label for their transpose, some fifty a post.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable
from scipy.sparse import csr_array

from tagger.split.refine import Floats, Ints, refine
from tagger.system.jit import compiled_if_long

_STEPS = 60  # that a post takes, about


def assign(
    labels: csr_array, groups: npt.NDArray[np.int64], proportions: Sequence[float], seed: int
) -> npt.NDArray[np.int8]:
    """Return the part of each group, (groups,).

    labels: (posts, tags), of which only the places count, each once
    groups: (posts,), the group of each post, numbered from 0
    """
    random = np.random.default_rng(seed)
    sizes = np.bincount(groups)
    order = random.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]  # large groups first, then by chance
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    left = np.bincount(labels.indices, minlength=labels.shape[1])
    dealt = labels[np.argsort(rank[groups], kind="stable")]
    tables = (
        dealt.indptr[np.concatenate([[0], np.cumsum(sizes[order])])],
        dealt.indices,
        sizes[order],
        np.concatenate([[0], np.cumsum(left)]),
        np.empty(len(labels.indices), np.int32),
        left,
        np.outer(left, proportions).ravel(),
        np.asarray(proportions) * len(groups),
        np.full(len(sizes), -1, np.int8),
        random.integers(1, 1 << 31, 1),
    )
    deal = compiled_if_long(_deal, max(len(labels.indices), _STEPS * len(groups)))
    parts = np.empty(len(sizes), np.int8)
    parts[order] = deal(*(t.tolist() for t in tables) if deal is _deal else tables)
    return parts


def _deal(
    starts: Ints,  # (groups + 1,), of the tags of each group's posts, in the order of dealing
    tags: Ints,  # (labels,)
    sizes: Ints,  # (groups,), posts
    tag_starts: Ints,  # (tags + 1,), of each tag's groups
    tag_groups: Ints,  # (labels,), to be filled, in the order of dealing
    left: Ints,  # (tags,), posts not yet dealt
    wanted: Floats,  # (tags * parts,), posts that each part still wants of each tag
    room: Floats,  # (parts,), posts that each part still wants
    part_of: Ints,  # (groups,), -1: to be dealt
    state: Ints,  # (1,), of the random numbers
) -> Ints:
    _transpose(starts, tags, tag_starts, tag_groups)
    inside = [0] * len(wanted)  # posts of each tag in each part
    first = [-1] * (max(left) + 1)  # by number of posts left, a tag with so many
    after = [-1] * len(left)  # the next with as many
    before = [-1] * len(left)
    for tag in range(len(left)):
        _link(first, after, before, tag, left[tag])
    rarest = 1
    while rarest < len(first):
        tag = first[rarest]
        if tag < 0:
            rarest += 1
            continue
        to_deal = _count(tag_groups, tag_starts[tag], tag_starts[tag + 1], part_of)
        for place in range(tag_starts[tag], tag_starts[tag + 1]):
            group = tag_groups[place]
            if part_of[group] >= 0:
                continue
            part = _choose(wanted, inside, room, tag, to_deal, state)
            part_of[group] = part
            to_deal -= 1
            room[part] -= sizes[group]
            for label in range(starts[group], starts[group + 1]):
                other = tags[label]
                wanted[other * len(room) + part] -= 1
                inside[other * len(room) + part] += 1
                _unlink(first, after, before, other, left[other])
                left[other] -= 1
                _link(first, after, before, other, left[other])
                if 0 < left[other] < rarest:
                    rarest = left[other]
    _fill(sizes, room, part_of)
    refine(starts, tags, sizes, tag_starts, tag_groups, wanted, inside, room, part_of)
    return part_of


@register_jitable
def _transpose(starts: Ints, tags: Ints, tag_starts: Ints, tag_groups: Ints) -> None:
    """List the groups of each tag, as often as it has posts in them."""
    ends = [tag_starts[tag] for tag in range(len(tag_starts) - 1)]
    for group in range(len(starts) - 1):
        for label in range(starts[group], starts[group + 1]):
            tag_groups[ends[tags[label]]] = group
            ends[tags[label]] += 1


@register_jitable
def _count(tag_groups: Ints, start: int, end: int, part_of: Ints) -> int:
    """Return how many groups of a tag are still to be dealt."""
    groups = 0
    previous = -1
    for place in range(start, end):
        group = tag_groups[place]
        if group != previous and part_of[group] < 0:
            groups += 1
        previous = group
    return groups


@register_jitable
def _choose(wanted: Floats, inside: Ints, room: Floats, tag: int, to_deal: int, state: Ints) -> int:
    """Return the part for one of the last `to_deal` groups of a tag.

    Parts that are not full come first; then, where there are no more groups than parts without the
    tag, such a part; then that which wants most posts of the tag, then most posts; then chance.
    """
    row = tag * len(room)
    without = 0
    for part in range(len(room)):
        without += inside[row + part] == 0
    best = 0
    ties = 1
    for part in range(1, len(room)):
        gain = 1.0 * (room[part] > 0) - (room[best] > 0)
        if gain == 0 and to_deal <= without:
            gain = 1.0 * (inside[row + part] == 0) - (inside[row + best] == 0)
        if gain == 0:
            gain = wanted[row + part] - wanted[row + best]
        if gain == 0:
            gain = room[part] - room[best]
        if gain > 0:
            best = part
            ties = 1
        elif gain == 0:
            ties += 1
            if _draw(state, ties) == 0:
                best = part
    return best


@register_jitable
def _fill(sizes: Ints, room: Floats, part_of: Ints) -> None:
    """Deal out the groups without a tag, each to the part with most room."""
    for group in range(len(part_of)):
        if part_of[group] < 0:
            best = 0
            for part in range(1, len(room)):
                if room[part] > room[best]:
                    best = part
            part_of[group] = best
            room[best] -= sizes[group]


@register_jitable
def _draw(state: Ints, bound: int) -> int:
    """Return a number below a small bound, the same interpreted and compiled."""
    state[0] = (state[0] * 1103515245 + 12345) % 2147483648
    return int((state[0] >> 8) % bound)


@register_jitable
def _link(first: Ints, after: Ints, before: Ints, tag: int, count: int) -> None:
    """Put a tag at the head of the list of those with so many posts left."""
    head = first[count]
    before[tag] = -1
    after[tag] = head
    if head >= 0:
        before[head] = tag
    first[count] = tag


@register_jitable
def _unlink(first: Ints, after: Ints, before: Ints, tag: int, count: int) -> None:
    if before[tag] >= 0:
        after[before[tag]] = after[tag]
    else:
        first[count] = after[tag]
    if after[tag] >= 0:
        before[after[tag]] = before[tag]
