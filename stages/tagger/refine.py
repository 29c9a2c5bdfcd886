"""Even out a split: move single posts between its parts where that brings tags nearer their shares.

Written for numba, and for lists: small splits are refined by the interpreter.
"""

from typing import Any

from numba.extending import register_jitable

# Arrays, or lists, with which Python alone is faster.
Ints = Any
Floats = Any

_PASSES = 2  # over all posts; further ones gain little


@register_jitable
def refine(
    starts: Ints,
    tags: Ints,
    group_starts: Ints,
    members: Ints,
    wanted: Floats,
    inside: Ints,
    room: Floats,
    part_of: Ints,
) -> None:
    """Move posts that are a group of their own where that evens the shares of their tags.

    Meanwhile a part may have one post too many or too few; a last scan puts that right.
    """
    for turn in range(_PASSES + len(room)):
        best_group = -1
        most = -1e300 if turn >= _PASSES else 1e-9
        to = 0
        for group in range(len(part_of)):
            if group_starts[group + 1] - group_starts[group] > 1:
                continue
            post = members[group_starts[group]]
            here = part_of[group]
            for part in range(len(room)):
                if turn < _PASSES:
                    allowed = room[part] >= 0 and room[here] <= 0
                else:
                    allowed = room[here] <= -1 and room[part] > 0
                if part == here or not allowed:
                    continue
                gain = 0.0
                for label in range(starts[post], starts[post + 1]):
                    gain += _gain(wanted, inside, tags[label] * len(room), here, part, len(room))
                if gain > most:
                    most = gain
                    best_group = group
                    to = part
            if best_group == group and turn < _PASSES:
                _move(starts, tags, post, wanted, inside, room, here, to)
                part_of[group] = to
                most = 1e-9
        if turn >= _PASSES and best_group >= 0:
            post = members[group_starts[best_group]]
            _move(starts, tags, post, wanted, inside, room, part_of[best_group], to)
            part_of[best_group] = to


@register_jitable
def _move(
    starts: Ints,
    tags: Ints,
    post: int,
    wanted: Floats,
    inside: Ints,
    room: Floats,
    here: int,
    there: int,
) -> None:
    room[here] += 1
    room[there] -= 1
    for label in range(starts[post], starts[post + 1]):
        row = tags[label] * len(room)
        wanted[row + here] += 1
        inside[row + here] -= 1
        wanted[row + there] -= 1
        inside[row + there] += 1


@register_jitable
def _gain(wanted: Floats, inside: Ints, row: int, here: int, there: int, parts: int) -> float:
    """Return by how much moving one post of a tag evens its shares, in shares of its posts."""
    posts = 0
    for part in range(parts):
        posts += inside[row + part]
    before = abs(wanted[row + here]) + abs(wanted[row + there])
    after = abs(wanted[row + here] + 1) + abs(wanted[row + there] - 1)
    gain = float((before - after) / posts)
    if inside[row + here] == 1:
        gain -= 1
    if inside[row + there] == 0:
        gain += 1
    return gain
