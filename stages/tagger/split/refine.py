"""Even out a split: move groups between its parts where that brings tags nearer their shares.

A part ends within the size of the largest group of what it should hold. A tag on as many groups as
there are parts ends in each, unless no single move can bring that about.

Written for numba, and for lists: small splits are refined by the interpreter.
"""

from typing import Any

from numba.extending import register_jitable

# Arrays, or lists, with which Python alone is faster.
Ints = Any
Floats = Any

_PASSES = 2  # over all groups; further ones gain little
_ROUNDS = 3  # of giving parts the tags that they lack
_LOSSES = (0.0, 0.1, 0.5)  # to tags, that evening sizes may cost; below 1 none goes missing
_NONE = -1
_LEAST = 1e-9  # gain that is more than rounding


@register_jitable
def refine(
    starts: Ints,  # (groups + 1,), of the tags of each group's posts
    tags: Ints,  # (labels,)
    sizes: Ints,  # (groups,), posts
    tag_starts: Ints,  # (tags + 1,), of each tag's groups
    tag_groups: Ints,  # (labels,)
    wanted: Floats,  # (tags * parts,), posts that each part wants more of each tag
    inside: Ints,  # (tags * parts,), posts of each tag in each part
    room: Floats,  # (parts,), posts that each part wants more
    part_of: Ints,  # (groups,)
) -> None:
    """Even the shares of tags, then sizes; then give parts the tags they lack, and even again."""
    for _ in range(_PASSES):
        _even_tags(starts, tags, sizes, wanted, inside, room, part_of)
    for loss in _LOSSES:
        _even_sizes(starts, tags, sizes, wanted, inside, room, part_of, loss)
    _bound_sizes(starts, tags, sizes, wanted, inside, room, part_of)
    for _ in range(_ROUNDS):
        _spread(starts, tags, sizes, tag_starts, tag_groups, wanted, inside, room, part_of)
        for loss in _LOSSES:
            _even_sizes(starts, tags, sizes, wanted, inside, room, part_of, loss)


@register_jitable
def _even_tags(
    starts: Ints,
    tags: Ints,
    sizes: Ints,
    wanted: Floats,
    inside: Ints,
    room: Floats,
    part_of: Ints,
) -> None:
    """Move each group where its tags are wanted; a part may get one too many or lack one."""
    for group in range(len(part_of)):
        here = part_of[group]
        best = here
        most = _LEAST
        for part in range(len(room)):
            if part != here and room[part] >= 0 and room[here] <= 0:
                gain = _gain(starts, tags, sizes, wanted, inside, len(room), group, here, part)
                if gain > most:
                    most = gain
                    best = part
        if best != here:
            _move(starts, tags, sizes, wanted, inside, room, part_of, group, best)


@register_jitable
def _even_sizes(
    starts: Ints,
    tags: Ints,
    sizes: Ints,
    wanted: Floats,
    inside: Ints,
    room: Floats,
    part_of: Ints,
    loss: float,
) -> None:
    """Move groups where that evens the sizes of parts, at no greater loss to their tags."""
    for group in range(len(part_of)):
        here = part_of[group]
        best = here
        most = -loss
        for part in range(len(room)):
            if room[here] < 0 < room[part] and _excess(room, here, part, sizes[group]) < -_LEAST:
                gain = _gain(starts, tags, sizes, wanted, inside, len(room), group, here, part)
                if gain >= most:
                    most = gain
                    best = part
        if best != here:
            _move(starts, tags, sizes, wanted, inside, room, part_of, group, best)


@register_jitable
def _bound_sizes(
    starts: Ints,
    tags: Ints,
    sizes: Ints,
    wanted: Floats,
    inside: Ints,
    room: Floats,
    part_of: Ints,
) -> None:
    """Move groups from the fullest part to the emptiest until none is off by more than a group."""
    largest = max(sizes)
    while max(max(room), -min(room)) > largest + _LEAST:
        full = 0
        empty = 0
        for part in range(1, len(room)):
            if room[part] < room[full]:
                full = part
            if room[part] > room[empty]:
                empty = part
        chosen = _NONE
        for group in range(len(part_of)):
            if part_of[group] == full and (chosen == _NONE or sizes[group] > sizes[chosen]):
                chosen = group
        _move(starts, tags, sizes, wanted, inside, room, part_of, chosen, empty)


@register_jitable
def _spread(
    starts: Ints,
    tags: Ints,
    sizes: Ints,
    tag_starts: Ints,
    tag_groups: Ints,
    wanted: Floats,
    inside: Ints,
    room: Floats,
    part_of: Ints,
) -> None:
    """Give parts the tags that they lack, as far as sizes stay near those wanted."""
    parts = len(room)
    slack = min(max(sizes), 2 + sum(sizes) // 50)
    for tag in range(len(tag_starts) - 1):
        for part in range(parts):
            if inside[tag * parts + part]:
                continue
            chosen = _NONE
            most = _LEAST
            for place in range(tag_starts[tag], tag_starts[tag + 1]):
                group = tag_groups[place]
                here = part_of[group]
                if here != part and _fits(room, here, part, sizes[group], slack):
                    gain = _gain(starts, tags, sizes, wanted, inside, parts, group, here, part)
                    if gain > most:
                        most = gain
                        chosen = group
            if chosen != _NONE:
                _move(starts, tags, sizes, wanted, inside, room, part_of, chosen, part)


@register_jitable
def _fits(room: Floats, here: int, there: int, size: int, slack: int) -> bool:
    """Return whether two parts are as large as wanted, but for some posts, after such a move."""
    return bool(abs(room[here] + size) <= slack and abs(room[there] - size) <= slack)


@register_jitable
def _excess(room: Floats, here: int, there: int, size: int) -> float:
    """Return by how many posts moving so many makes the sizes of two parts worse."""
    before = abs(room[here]) + abs(room[there])
    return float(abs(room[here] + size) + abs(room[there] - size) - before)


@register_jitable
def _move(
    starts: Ints,
    tags: Ints,
    sizes: Ints,
    wanted: Floats,
    inside: Ints,
    room: Floats,
    part_of: Ints,
    group: int,
    there: int,
) -> None:
    here = part_of[group]
    part_of[group] = there
    room[here] += sizes[group]
    room[there] -= sizes[group]
    for label in range(starts[group], starts[group + 1]):
        _shift(wanted, inside, tags[label] * len(room), here, there)


@register_jitable
def _shift(wanted: Floats, inside: Ints, row: int, here: int, there: int) -> None:
    """Move one post of a tag."""
    wanted[row + here] += 1
    inside[row + here] -= 1
    wanted[row + there] -= 1
    inside[row + there] += 1


@register_jitable
def _gain(
    starts: Ints,
    tags: Ints,
    sizes: Ints,
    wanted: Floats,
    inside: Ints,
    parts: int,
    group: int,
    here: int,
    there: int,
) -> float:
    """Return by how much moving a group evens the shares of its tags, in shares of their posts.

    A tag that a part gets or loses altogether counts one.
    """
    gain = 0.0
    for label in range(starts[group], starts[group + 1]):
        row = tags[label] * parts
        posts = 0
        for part in range(parts):
            posts += inside[row + part]
        before = abs(wanted[row + here]) + abs(wanted[row + there])
        after = abs(wanted[row + here] + 1) + abs(wanted[row + there] - 1)
        gain += (before - after) / posts + (inside[row + there] == 0) - (inside[row + here] == 1)
        if sizes[group] > 1:  # its posts may share tags
            _shift(wanted, inside, row, here, there)
    if sizes[group] > 1:
        for label in range(starts[group], starts[group + 1]):
            _shift(wanted, inside, tags[label] * parts, there, here)
    return gain
