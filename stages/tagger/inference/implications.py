"""Tags that follow from others: taken away, or added."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from tagger.core.errors import TaggerError
from tagger.inference.captions import ApplyImplications, PredictedTag

Implications = Mapping[str, Sequence[str]]  # all that a tag implies, over any number of steps


def read_implications(folder: Path) -> Implications:
    """Return the implications of a folder of rules. Raises TaggerError if there are none."""
    from tagger.data.tags import rules

    implications = rules.read(folder).implications
    if not implications:
        raise TaggerError(
            f"{folder} holds no implications. Put tag_implications.csv there "
            "(antecedent_name,consequent_name), or name its folder with --rules."
        )
    return implications


def build_implications(
    mode: str | None, folder: Path, categories: Mapping[str, str]
) -> ApplyImplications:
    """Return a function that applies implications to the tags of an image.

    mode: `remove`, `add`, or None to leave the tags as they are
    categories: by tag, as for `add_implied`
    """
    if mode is None:
        return list
    implications = read_implications(folder)
    if mode == "remove":
        return partial(remove_implied, implications=implications)
    return partial(add_implied, implications=implications, categories=categories)


def remove_implied(tags: Sequence[PredictedTag], implications: Implications) -> list[PredictedTag]:
    """Return the tags that no other one implies. Of tags that imply each other, all stay."""
    implied_names = {
        implied
        for tag in tags
        for implied in implications.get(tag.name, ())
        if tag.name not in implications.get(implied, ())
    }
    return [tag for tag in tags if tag.name not in implied_names]


def add_implied(
    tags: Sequence[PredictedTag], implications: Implications, categories: Mapping[str, str]
) -> list[PredictedTag]:
    """Return the tags and all they imply, each as sure as the surest that implies it.

    categories: by tag; a tag without one is a general tag
    """
    by_name = {tag.name: tag for tag in tags}
    for tag in tags:
        for implied in implications.get(tag.name, ()):
            before = by_name.get(implied)
            if before is None:
                category = categories.get(implied, "general")
                by_name[implied] = PredictedTag(implied, category, tag.confidence)
            elif before not in tags and before.confidence < tag.confidence:
                by_name[implied] = before._replace(confidence=tag.confidence)
    return sorted(by_name.values(), key=lambda tag: -tag.confidence)
