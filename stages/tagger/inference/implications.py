"""Tags that follow from others: taken away, or added."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from tagger.core.errors import TaggerError
from tagger.inference.given import ApplyImplications, PredictedTag

Implications = Mapping[str, Sequence[str]]  # all that a tag implies, over any number of steps


def read_implications(folder: Path) -> Implications:
    """Return the implications of a folder of rules. Raises TaggerError where there are none."""
    from tagger.data.tags import rules

    found = rules.read(folder).implications
    if not found:
        raise TaggerError(
            f"{folder} holds no implications. Put tag_implications.csv there "
            "(antecedent_name,consequent_name), or name its folder with --rules."
        )
    return found


def build_implications(
    how: str | None, folder: Path, categories: Mapping[str, str]
) -> ApplyImplications:
    """Return what `remove` or `add` makes of given tags, or what leaves them as they are."""
    if how is None:
        return list
    implications = read_implications(folder)
    if how == "remove":
        return partial(remove_implied, implications=implications)
    return partial(add_implied, implications=implications, categories=categories)


def remove_implied(given: Sequence[PredictedTag], implications: Implications) -> list[PredictedTag]:
    """Return the tags that no other given tag implies. Of tags that imply each other, all stay."""
    said = {
        implied
        for one in given
        for implied in implications.get(one.name, ())
        if one.name not in implications.get(implied, ())
    }
    return [one for one in given if one.name not in said]


def add_implied(
    given: Sequence[PredictedTag], implications: Implications, categories: Mapping[str, str]
) -> list[PredictedTag]:
    """Return the tags and all they imply, each as sure as the surest that implies it.

    categories: by tag; a tag of which nothing is known is a general one
    """
    sure = {one.name: one for one in given}
    for one in given:
        for tag in implications.get(one.name, ()):
            before = sure.get(tag)
            if before is None:
                sure[tag] = PredictedTag(tag, categories.get(tag, "general"), one.confidence)
            elif before not in given and before.confidence < one.confidence:
                sure[tag] = before._replace(confidence=one.confidence)
    return sorted(sure.values(), key=lambda one: -one.confidence)
