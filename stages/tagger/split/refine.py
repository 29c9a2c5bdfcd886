"""Balance a split: move groups between splits if that brings tags nearer their fractions.

Each split ends within the size of the largest group of what it should hold. A tag on as many
groups as there are splits ends in each split, unless no single move can achieve that.

Written for numba, and for lists: small splits are refined by the interpreter.
"""

from typing import Any, NamedTuple

from numba.extending import register_jitable

# Arrays, or lists, which are faster in plain Python.
IntSequence = Any
FloatSequence = Any

_PASSES = 2  # over all groups; further passes gain little
_ROUNDS = 3  # of giving splits the tags that they lack
_MAX_LOSSES = (0.0, 0.1, 0.5)  # to tags, for even sizes; below 1 no tag goes missing
_NONE = -1
_EPSILON = 1e-9  # a gain above rounding errors


class Assignment(NamedTuple):
    """Groups of posts, their tags, and the split of each group."""

    starts: IntSequence  # (groups + 1,), where the tags of each group's posts start
    tags: IntSequence  # (labels,)
    sizes: IntSequence  # (groups,), posts
    tag_starts: IntSequence  # (tags + 1,), where the groups of each tag start
    tag_groups: IntSequence  # (labels,), as often as a group has posts with the tag
    missing: FloatSequence  # (tags * splits,), posts of each tag that each split lacks
    counts: IntSequence  # (tags * splits,), posts of each tag in each split
    room: FloatSequence  # (splits,), posts that each split lacks
    split_of: IntSequence  # (groups,), -1: not assigned yet


@register_jitable
def refine(state: Assignment) -> None:
    """Balance tags, then sizes; then give splits the tags they lack, and balance sizes again."""
    for _ in range(_PASSES):
        _balance_tags(state)
    for loss in _MAX_LOSSES:
        _balance_sizes(state, loss)
    _bound_sizes(state)
    for _ in range(_ROUNDS):
        _spread_tags(state)
        for loss in _MAX_LOSSES:
            _balance_sizes(state, loss)


@register_jitable
def _balance_tags(state: Assignment) -> None:
    """Move groups to where their tags are missing; a size may end one post off."""
    room, split_of = state.room, state.split_of
    for group in range(len(split_of)):
        source = split_of[group]
        best = source
        best_gain = _EPSILON
        for split in range(len(room)):
            if split != source and room[split] >= 0 and room[source] <= 0:
                gain = _gain(state, group, source, split)
                if gain > best_gain:
                    best_gain = gain
                    best = split
        if best != source:
            _move(state, group, best)


@register_jitable
def _balance_sizes(state: Assignment, loss: float) -> None:
    """Move groups if that evens the sizes of splits, at no greater loss to their tags."""
    room, split_of = state.room, state.split_of
    for group in range(len(split_of)):
        source = split_of[group]
        best = source
        best_gain = -loss
        for split in range(len(room)):
            if (
                room[source] < 0 < room[split]
                and _excess(room, source, split, state.sizes[group]) < -_EPSILON
            ):
                gain = _gain(state, group, source, split)
                if gain >= best_gain:
                    best_gain = gain
                    best = split
        if best != source:
            _move(state, group, best)


@register_jitable
def _bound_sizes(state: Assignment) -> None:
    """Move groups from the fullest split to the emptiest until none is off by more than a group."""
    room, sizes, split_of = state.room, state.sizes, state.split_of
    largest = max(sizes)
    while max(max(room), -min(room)) > largest + _EPSILON:
        full = 0
        empty = 0
        for split in range(1, len(room)):
            if room[split] < room[full]:
                full = split
            if room[split] > room[empty]:
                empty = split
        chosen = _NONE
        for group in range(len(split_of)):
            if split_of[group] == full and (chosen == _NONE or sizes[group] > sizes[chosen]):
                chosen = group
        _move(state, chosen, empty)


@register_jitable
def _spread_tags(state: Assignment) -> None:
    """Give splits the tags that they lack, as far as their sizes allow."""
    room, sizes = state.room, state.sizes
    slack = min(max(sizes), 2 + sum(sizes) // 50)
    for tag in range(len(state.tag_starts) - 1):
        for split in range(len(room)):
            if state.counts[tag * len(room) + split]:
                continue
            chosen = _NONE
            best_gain = _EPSILON
            for place in range(state.tag_starts[tag], state.tag_starts[tag + 1]):
                group = state.tag_groups[place]
                source = state.split_of[group]
                if source != split and _fits(room, source, split, sizes[group], slack):
                    gain = _gain(state, group, source, split)
                    if gain > best_gain:
                        best_gain = gain
                        chosen = group
            if chosen != _NONE:
                _move(state, chosen, split)


@register_jitable
def _fits(room: FloatSequence, source: int, target: int, size: int, slack: int) -> bool:
    """Return whether two splits have their sizes, give or take some posts, after such a move."""
    return bool(abs(room[source] + size) <= slack and abs(room[target] - size) <= slack)


@register_jitable
def _excess(room: FloatSequence, source: int, target: int, size: int) -> float:
    """Return by how many posts moving so many makes the sizes of two splits worse."""
    before = abs(room[source]) + abs(room[target])
    return float(abs(room[source] + size) + abs(room[target] - size) - before)


@register_jitable
def _move(state: Assignment, group: int, target: int) -> None:
    source = state.split_of[group]
    state.split_of[group] = target
    state.room[source] += state.sizes[group]
    state.room[target] -= state.sizes[group]
    for label in range(state.starts[group], state.starts[group + 1]):
        _shift(state, state.tags[label] * len(state.room), source, target)


@register_jitable
def _shift(state: Assignment, row: int, source: int, target: int) -> None:
    """Move one post of a tag."""
    missing, counts = state.missing, state.counts
    missing[row + source] += 1
    counts[row + source] -= 1
    missing[row + target] -= 1
    counts[row + target] += 1


@register_jitable
def _gain(state: Assignment, group: int, source: int, target: int) -> float:
    """Return by how much a move balances the tags of a group, in fractions of their posts.

    A tag that a split gets or loses altogether counts one.
    """
    missing, counts, tags = state.missing, state.counts, state.tags
    splits = len(state.room)
    several = state.sizes[group] > 1  # their posts may share tags
    gain = 0.0
    for label in range(state.starts[group], state.starts[group + 1]):
        row = tags[label] * splits
        posts = 0
        for split in range(splits):
            posts += counts[row + split]
        before = abs(missing[row + source]) + abs(missing[row + target])
        after = abs(missing[row + source] + 1) + abs(missing[row + target] - 1)
        gain += (before - after) / posts + (counts[row + target] == 0) - (counts[row + source] == 1)
        if several:
            _shift(state, row, source, target)
    if several:
        for label in range(state.starts[group], state.starts[group + 1]):
            _shift(state, tags[label] * splits, target, source)
    return gain
