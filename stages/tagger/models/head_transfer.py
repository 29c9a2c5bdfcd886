"""A trained tagger as the start of another, whose tags may be others in part."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from tagger.core.errors import TaggerError
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.data.tags import match
from tagger.data.tags.match import MatchOutcome, NewTagStart, StartGroup
from tagger.models import checkpoints, layouts, pretrained

Outcome: TypeAlias = Literal[MatchOutcome, "new", "dropped"]

_QUERIES, _QUERY_OF_TAG = "decoder.queries", "decoder.query_of_tag"  # of a query head

_log = logging.getLogger(__name__)


class TransferredTag(NamedTuple):
    """What became of a tag, be it one that the model learns or an old one that it does not."""

    name: str
    category: int
    outcome: Outcome
    source: str  # the old tag it was, or what a new one starts as


HEADER = TransferredTag._fields


def transfer_head(
    model: nn.Module,
    folder: Path,
    backbone: str,
    tags: Sequence[Tag],
    aliases: Mapping[str, str],
    new: NewTagStart,
) -> list[TransferredTag]:
    """Put a trained tagger's weights into a model; each tag that both know keeps its output.

    folder: of `train`, of `export`, or any of timm's with a selected_tags.csv
    backbone: the model's, as the preset names it
    tags: the model's outputs; where they are the old ones, the head is the same bit for bit
    aliases: the tag that is meant, by the name of one that is no more
    new: what tags without an old one start as: `related`, the mean of the carried tags of their
        category that end alike (`*_hair`), else of those of the category, else of all; `mean`, that
        of all; `fresh`, as the model has them

    Raises TaggerError for a folder that is no tagger, is damaged, or is of another backbone.
    """
    olds = layouts.read_tags(folder)
    rows = _row_names(model, backbone)
    stored = pretrained.load_pretrained(
        model, checkpoints.read(folder, backbone), fresh=[*rows, _QUERIES]
    )
    if _QUERIES not in rows:
        _share_queries(model, stored)
    old_rows = _old_rows(model, rows, stored, folder, len(olds))
    found = match.match_tags(tags, olds, aliases) if old_rows else {}
    if not found:
        why = "none of its tags is among those to learn" if old_rows else "its head is another"
        _log.warning("The head starts anew, without %s: %s.", folder, why)
    starts = match.group_new_tags(tags, sorted(found), new) if found else []
    if found:
        _set_rows(model, old_rows, {row: old for row, (old, _) in found.items()}, starts)
    return _told(tags, olds, found, starts)


def _row_names(model: nn.Module, backbone: str) -> list[str]:
    """Return the names of the model's entries that have a row for each tag."""
    name = pretrained.head_name(model)
    if not name:
        raise TaggerError(f"{backbone} has no single head, so none can be carried. Take another.")
    head = model.get_submodule(name)
    own = getattr(head, "per_tag", None)
    if own is None:  # timm's, a layer or one with a norm before it
        layers = {n: m for n, m in head.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        last = next(reversed(layers), "")
        own = [f"{last}.{kind}".lstrip(".") for kind in ("weight", "bias")]
    there = head.state_dict()
    return [f"{name}.{entry}" for entry in own if entry in there]


def _share_queries(model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Give a query head, if the model has such, the old queries, to which its tags will keep."""
    values, old = model.state_dict().get(_QUERIES), stored.get(_QUERIES)
    if values is not None and old is not None and values.shape[1:] == old.shape[1:]:
        kept = min(len(values), len(old))
        written = torch.cat([old[:kept].to(values), values[kept:]])
        model.load_state_dict({_QUERIES: written}, strict=False)


def _old_rows(
    model: nn.Module, rows: Sequence[str], stored: Mapping[str, Tensor], folder: Path, olds: int
) -> dict[str, Tensor]:
    """Return the old rows of each entry, (old tags, ...); none where the head is another."""
    old_rows = {name: stored[name] for name in rows if name in stored}
    if _QUERIES in old_rows and _QUERY_OF_TAG in stored:  # which the old tags may share
        old_rows[_QUERIES] = stored[_QUERIES][stored[_QUERY_OF_TAG].long()]
    counts = {len(values) for values in old_rows.values() if values.ndim}
    if len(counts) == 1 and counts != {olds}:
        raise TaggerError(
            f"{folder} lists {olds} tags, and its model has {counts.pop()} outputs. "
            "They are not of one training: get the folder again."
        )
    state = model.state_dict()
    alike = all(old_rows[name].shape[1:] == state[name].shape[1:] for name in old_rows)
    return old_rows if alike and counts == {olds} and len(old_rows) == len(rows) else {}


def _set_rows(
    model: nn.Module,
    old_rows: Mapping[str, Tensor],
    carried: Mapping[int, int],
    starts: Sequence[StartGroup],
) -> None:
    """Write the rows of the head: those carried, by the number of the old one, then the means."""
    state = model.state_dict()
    written = {}
    for name, old in old_rows.items():
        values = state[name].clone()
        values[list(carried)] = old[list(carried.values())].to(values)
        for start in starts:
            origins = values[start.matched_rows]
            whole = not origins.is_floating_point()  # the number of a query: that of the most
            values[start.new_rows] = origins.mode(dim=0).values if whole else origins.mean(dim=0)
        written[name] = values
    model.load_state_dict(written, strict=False)


def _told(
    tags: Sequence[Tag],
    olds: Sequence[Tag],
    found: Mapping[int, tuple[int, MatchOutcome]],
    starts: Sequence[StartGroup],
) -> list[TransferredTag]:
    sources = {row: start.description for start in starts for row in start.new_rows}
    told = [
        TransferredTag(tag.name, tag.category, found[row][1], olds[found[row][0]].name)
        if row in found
        else TransferredTag(tag.name, tag.category, "new", sources.get(row, ""))
        for row, tag in enumerate(tags)
    ]
    used = {old for old, _ in found.values()}
    dropped = (old for number, old in enumerate(olds) if number not in used)
    return told + [TransferredTag(old.name, old.category, "dropped", "") for old in dropped]


def table_rows(carried: Sequence[TransferredTag]) -> list[tuple[str, str, str, str]]:
    """Return the rows of a table under `HEADER`, categories by their names."""
    return [(tag.name, CATEGORIES.get(tag.category, ""), *tag[2:]) for tag in carried]


def summarize(carried: Sequence[TransferredTag]) -> str:
    """Return "carried 120 of 136 tags (3 by alias), 16 new, 9 dropped"."""
    count = Counter(tag.outcome for tag in carried)
    aliased, new = count["carried_by_alias"], count["new"]
    kept = count["carried"] + aliased
    by_alias = f" ({aliased:,} by alias)" if aliased else ""
    told = f"carried {kept:,} of {kept + new:,} tags{by_alias}"
    return f"{told}, {new:,} new, {count['dropped']:,} dropped"
