"""Head transfer: a trained tagger as the start of another with other tags."""

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
    """What became of a tag of the model, or of an old tag that the model does not learn."""

    name: str
    category: int
    outcome: Outcome
    source: str  # the old tag, or how a new one starts


HEADER = TransferredTag._fields


def transfer_head(
    model: nn.Module,
    folder: Path,
    backbone: str,
    tags: Sequence[Tag],
    aliases: Mapping[str, str],
    new: NewTagStart,
) -> list[TransferredTag]:
    """Load a trained tagger's weights into a model; each tag that both have keeps its output.

    folder: of `train`, of `export`, or in timm's layout with a selected_tags.csv
    backbone: the model's, as the preset names it
    tags: of the model's outputs; if they are the old ones, the head is the same bit for bit
    aliases: the present name of a tag by a former one
    new: how tags without an old one start: `related`, the mean of the transferred tags of their
        category that end alike (`*_hair`), else of the category, else of all; `mean`, the mean of
        all; `fresh`, as the model has them

    Raises TaggerError for a folder that is no tagger, is damaged, or is of another backbone.
    """
    old_tags = layouts.read_tags(folder)
    rows = _row_names(model, backbone)
    stored = pretrained.load_pretrained(
        model, checkpoints.read(folder, backbone), fresh=[*rows, _QUERIES]
    )
    if _QUERIES not in rows:
        _share_queries(model, stored)
    old_rows = _old_rows(model, rows, stored, folder, len(old_tags))
    matches = match.match_tags(tags, old_tags, aliases) if old_rows else {}
    if not matches:
        reason = "the model has none of its tags" if old_rows else "its head is of another form"
        _log.warning("The head is newly initialised, without %s: %s.", folder, reason)
    starts = match.group_new_tags(tags, sorted(matches), new) if matches else []
    if matches:
        _set_rows(model, old_rows, {row: old for row, (old, _) in matches.items()}, starts)
    return build_outcomes(tags, old_tags, matches, starts)


def _row_names(model: nn.Module, backbone: str) -> list[str]:
    """Return the names of the model's entries that have a row for each tag."""
    name = pretrained.head_name(model)
    if not name:
        raise TaggerError(
            f"{backbone} has no single head, so none can be transferred. Use another."
        )
    head = model.get_submodule(name)
    entries = getattr(head, "per_tag", None)
    if entries is None:  # timm's: a layer, or a layer after a norm
        layers = {n: m for n, m in head.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        last = next(reversed(layers), "")
        entries = [f"{last}.{kind}".lstrip(".") for kind in ("weight", "bias")]
    state = head.state_dict()
    return [f"{name}.{entry}" for entry in entries if entry in state]


def _share_queries(model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Give a query head, if the model has one, the old queries, which its tags keep."""
    values, old = model.state_dict().get(_QUERIES), stored.get(_QUERIES)
    if values is not None and old is not None and values.shape[1:] == old.shape[1:]:
        count = min(len(values), len(old))
        queries = torch.cat([old[:count].to(values), values[count:]])
        model.load_state_dict({_QUERIES: queries}, strict=False)


def _old_rows(
    model: nn.Module,
    rows: Sequence[str],
    stored: Mapping[str, Tensor],
    folder: Path,
    tag_count: int,
) -> dict[str, Tensor]:
    """Return the old rows of each entry, (old tags, ...); none for a head of another form."""
    old_rows = {name: stored[name] for name in rows if name in stored}
    if _QUERIES in old_rows and _QUERY_OF_TAG in stored:  # old tags may share a query
        old_rows[_QUERIES] = stored[_QUERIES][stored[_QUERY_OF_TAG].long()]
    counts = {len(values) for values in old_rows.values() if values.ndim}
    if len(counts) == 1 and counts != {tag_count}:
        raise TaggerError(
            f"{folder} lists {tag_count} tags, and its model has {counts.pop()} outputs. "
            "They are not of one training: copy the folder again."
        )
    state = model.state_dict()
    same_shapes = all(old_rows[name].shape[1:] == state[name].shape[1:] for name in old_rows)
    return old_rows if same_shapes and counts == {tag_count} and len(old_rows) == len(rows) else {}


def _set_rows(
    model: nn.Module,
    old_rows: Mapping[str, Tensor],
    transferred: Mapping[int, int],
    starts: Sequence[StartGroup],
) -> None:
    """Set the rows of the head: the transferred ones, by old row, then the means."""
    state = model.state_dict()
    rows = {}
    for name, old in old_rows.items():
        values = state[name].clone()
        values[list(transferred)] = old[list(transferred.values())].to(values)
        for start in starts:
            origins = values[start.matched_rows]
            whole = not origins.is_floating_point()  # the number of a query: that of the most
            values[start.new_rows] = origins.mode(dim=0).values if whole else origins.mean(dim=0)
        rows[name] = values
    model.load_state_dict(rows, strict=False)


def build_outcomes(
    tags: Sequence[Tag],
    old_tags: Sequence[Tag],
    matches: Mapping[int, tuple[int, MatchOutcome]],
    starts: Sequence[StartGroup],
) -> list[TransferredTag]:
    """Return what became of each tag of the model, then the old tags that are dropped."""
    sources = {row: start.description for start in starts for row in start.new_rows}
    outcomes = [
        TransferredTag(tag.name, tag.category, matches[row][1], old_tags[matches[row][0]].name)
        if row in matches
        else TransferredTag(tag.name, tag.category, "new", sources.get(row, ""))
        for row, tag in enumerate(tags)
    ]
    used = {old for old, _ in matches.values()}
    dropped = (old for number, old in enumerate(old_tags) if number not in used)
    return outcomes + [TransferredTag(old.name, old.category, "dropped", "") for old in dropped]


def table_rows(tags: Sequence[TransferredTag]) -> list[tuple[str, str, str, str]]:
    """Return the rows of a table under `HEADER`, categories by their names."""
    return [(tag.name, CATEGORIES.get(tag.category, ""), *tag[2:]) for tag in tags]


def summarize(tags: Sequence[TransferredTag]) -> str:
    """Return "transferred 120 of 136 tags (3 by alias), 16 new, 9 dropped"."""
    count = Counter(tag.outcome for tag in tags)
    aliased, new = count["transferred_by_alias"], count["new"]
    transferred = count["transferred"] + aliased
    by_alias = f" ({aliased:,} by alias)" if aliased else ""
    total = transferred + new
    summary = f"transferred {transferred:,} of {total:,} tags{by_alias}"
    return f"{summary}, {new:,} new, {count['dropped']:,} dropped"
