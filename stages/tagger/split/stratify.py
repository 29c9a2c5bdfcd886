"""Iterative stratification in one pass over sparse labels, in time linear in their number.

Sechidis et al. 2011, https://doi.org/10.1007/978-3-642-23808-6_10: the rarest remaining tag is
assigned first, each of its groups of posts to the split that lacks most posts of that tag. Tags
are kept in lists by the number of their remaining posts: the rarest is at hand, and assigning a
post moves each of its tags by one list.

Memory beyond the labels: four bytes a label for their transpose, some fifty a post.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable
from scipy.sparse import csr_array

from tagger.split.refine import Assignment, IntSequence, refine
from tagger.system.jit import compiled_if_long

_STEPS = 60  # per post, about


class _TagLists(NamedTuple):
    """Doubly linked lists of the tags with the same number of remaining posts."""

    first: IntSequence  # (posts + 1,), the first tag with so many, -1: none
    after: IntSequence  # (tags,), the next tag of the list, -1: none
    before: IntSequence  # (tags,), the previous tag of the list, -1: none
    remaining: IntSequence  # (tags,), posts not assigned yet


def assign(
    labels: csr_array, groups: npt.NDArray[np.int64], fractions: Sequence[float], seed: int
) -> npt.NDArray[np.int8]:
    """Return the split of each group, (groups,).

    labels: (posts, tags), only the places count, each once
    groups: (posts,), the group of each post, numbered from 0
    """
    random = np.random.default_rng(seed)
    sizes = np.bincount(groups)
    order = random.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]  # large groups first, then at random
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    totals = np.bincount(labels.indices, minlength=labels.shape[1])
    ordered = labels[np.argsort(rank[groups], kind="stable")]
    missing = np.outer(totals, fractions).ravel()
    state = Assignment(
        starts=ordered.indptr[np.concatenate([[0], np.cumsum(sizes[order])])],
        tags=ordered.indices,
        sizes=sizes[order],
        tag_starts=np.concatenate([[0], np.cumsum(totals)]),
        tag_groups=np.empty(len(labels.indices), np.int32),
        missing=missing,
        counts=np.zeros(len(missing), np.int64),
        room=np.asarray(fractions) * len(groups),
        split_of=np.full(len(sizes), -1, np.int8),
    )
    unlinked = np.full(len(totals), -1)
    first = np.full(max(totals) + 1, -1)
    lists = _TagLists(first, after=unlinked, before=unlinked.copy(), remaining=totals)
    generator = random.integers(1, 1 << 31, 1)
    function = compiled_if_long(_assign, max(len(labels.indices), _STEPS * len(groups)))
    if function is _assign:
        state = Assignment(*(values.tolist() for values in state))
        lists = _TagLists(*(values.tolist() for values in lists))
        generator = generator.tolist()
    splits = np.empty(len(sizes), np.int8)
    splits[order] = function(state, lists, generator)
    return splits


def _assign(state: Assignment, lists: _TagLists, generator: IntSequence) -> IntSequence:
    """Return the split of each group; generator: (1,), the state of the random numbers."""
    split_of, remaining = state.split_of, lists.remaining
    _transpose(state)
    for tag in range(len(remaining)):
        _link(lists, tag)
    rarest = 1
    while rarest < len(lists.first):
        tag = lists.first[rarest]
        if tag < 0:
            rarest += 1
            continue
        unassigned = _count_unassigned(state, tag)
        for place in range(state.tag_starts[tag], state.tag_starts[tag + 1]):
            group = state.tag_groups[place]
            if split_of[group] >= 0:
                continue
            split = _choose(state, tag, unassigned, generator)
            unassigned -= 1
            split_of[group] = split
            state.room[split] -= state.sizes[group]
            for label in range(state.starts[group], state.starts[group + 1]):
                other = state.tags[label]
                state.missing[other * len(state.room) + split] -= 1
                state.counts[other * len(state.room) + split] += 1
                _unlink(lists, other)
                remaining[other] -= 1
                _link(lists, other)
                if 0 < remaining[other] < rarest:
                    rarest = remaining[other]
    _assign_untagged(state)
    refine(state)
    return split_of


@register_jitable
def _transpose(state: Assignment) -> None:
    """List the groups of each tag, as often as they have posts with it."""
    ends = [state.tag_starts[tag] for tag in range(len(state.tag_starts) - 1)]
    for group in range(len(state.starts) - 1):
        for label in range(state.starts[group], state.starts[group + 1]):
            state.tag_groups[ends[state.tags[label]]] = group
            ends[state.tags[label]] += 1


@register_jitable
def _count_unassigned(state: Assignment, tag: int) -> int:
    """Return how many groups of a tag are not assigned yet."""
    groups = 0
    previous = -1
    for place in range(state.tag_starts[tag], state.tag_starts[tag + 1]):
        group = state.tag_groups[place]
        if group != previous and state.split_of[group] < 0:
            groups += 1
        previous = group
    return groups


@register_jitable
def _choose(state: Assignment, tag: int, unassigned: int, generator: IntSequence) -> int:
    """Return the split for one of the last unassigned groups of a tag.

    Splits that are not full come first. If there are no more groups than splits without the tag,
    then come those splits. Then the split that lacks most posts of the tag, then most posts; then
    chance decides.
    """
    room, missing, counts = state.room, state.missing, state.counts
    row = tag * len(room)
    without = 0
    for split in range(len(room)):
        without += counts[row + split] == 0
    best = 0
    ties = 1
    for split in range(1, len(room)):
        gain = 1.0 * (room[split] > 0) - (room[best] > 0)
        if gain == 0 and unassigned <= without:
            gain = 1.0 * (counts[row + split] == 0) - (counts[row + best] == 0)
        if gain == 0:
            gain = missing[row + split] - missing[row + best]
        if gain == 0:
            gain = room[split] - room[best]
        if gain > 0:
            best = split
            ties = 1
        elif gain == 0:
            ties += 1
            if _draw(generator, ties) == 0:
                best = split
    return best


@register_jitable
def _assign_untagged(state: Assignment) -> None:
    """Assign the groups without a tag, each to the split with most room."""
    room = state.room
    for group in range(len(state.split_of)):
        if state.split_of[group] < 0:
            best = 0
            for split in range(1, len(room)):
                if room[split] > room[best]:
                    best = split
            state.split_of[group] = best
            room[best] -= state.sizes[group]


@register_jitable
def _draw(generator: IntSequence, bound: int) -> int:
    """Return a random number below a small bound, the same interpreted and compiled."""
    generator[0] = (generator[0] * 1103515245 + 12345) % 2147483648
    return int((generator[0] >> 8) % bound)


@register_jitable
def _link(lists: _TagLists, tag: int) -> None:
    """Put a tag at the head of its list."""
    count = lists.remaining[tag]
    head = lists.first[count]
    lists.before[tag] = -1
    lists.after[tag] = head
    if head >= 0:
        lists.before[head] = tag
    lists.first[count] = tag


@register_jitable
def _unlink(lists: _TagLists, tag: int) -> None:
    before, after = lists.before[tag], lists.after[tag]
    if before >= 0:
        lists.after[before] = after
    else:
        lists.first[lists.remaining[tag]] = after
    if after >= 0:
        lists.before[after] = before
