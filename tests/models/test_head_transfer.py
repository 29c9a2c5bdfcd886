"""A trained tagger is the start of another: what both know stays, the rest is told."""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tagger.core import vocabulary
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import UNKNOWN, Tag
from tagger.data.tags import match
from tagger.data.tags.match import NewTagStart
from tagger.images import decode
from tagger.images.dataset import Split
from tagger.models import backbone, head_transfer, layouts
from tagger.models.head_transfer import TransferredTag
from tagger.models.heads import Head, QueryTagger
from tagger.params import Preset


def general(*names: str, category: int = 0) -> list[Tag]:
    return [Tag(-1, name, category, 10) for name in names]


def outputs(model: nn.Module, part: Split, preset: Preset) -> Tensor:
    """Return the logits of real pictures, (8, tags)."""
    prepared = backbone.build_preprocess(model, preset)
    squares = np.stack([prepared.to_square(decode.open_rgb(place)) for place in part.locations[:8]])
    with torch.inference_mode():
        logits: Tensor = model.eval()(torch.from_numpy(prepared.normalise(squares)))
    return logits


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    """Write the folder of a tagger with these tags, each row of the head drawn apart."""

    def trained(tags: Sequence[Tag], preset: Preset, head: Head = "linear") -> Path:
        folder = tmp_path / "old"
        torch.manual_seed(3)
        model = backbone.build_model(preset, len(tags), head)
        for values in model.get_classifier().parameters():  # type: ignore[operator]
            nn.init.normal_(values)
        backbone.save_config(model, backbone.build_preprocess(model, preset), folder)
        backbone.save_weights(model.state_dict(), folder / backbone.WEIGHTS)
        vocabulary.write(tags, folder / "vocabulary.csv")
        return folder

    return trained


def start(
    folder: Path,
    preset: Preset,
    tags: Sequence[Tag],
    aliases: dict[str, str] | None = None,
    new: NewTagStart = "related",
    head: Head = "linear",
) -> tuple[Any, list[TransferredTag]]:
    """Return a model that starts from a folder, and what became of the tags."""
    torch.manual_seed(4)
    model = backbone.build_model(preset, len(tags), head)
    return model, head_transfer.transfer_head(
        model, folder, preset.backbone, tags, aliases or {}, new
    )


def last_layer(model: nn.Module) -> Any:
    head = model.get_classifier()  # type: ignore[operator]
    if isinstance(model, QueryTagger):
        return head
    return [part for part in head.modules() if isinstance(part, nn.Linear | nn.Conv2d)][-1]


def rows_of(model: nn.Module) -> Tensor:
    """Return weights and bias of each output, (tags, features + 1)."""
    last = last_layer(model)
    return torch.cat([last.weight.flatten(1), last.bias[:, None]], dim=1).detach()


# What stays


@pytest.mark.parametrize("new", ["related", "mean", "fresh"])
def test_the_same_tags_give_the_same_model_bit_for_bit(
    model_folder: Path, preset: Preset, tags: list[Tag], new: NewTagStart
) -> None:
    model, outcomes = start(model_folder, preset, tags, new=new)
    old = load_file(model_folder / backbone.WEIGHTS)
    state = model.state_dict()
    assert state.keys() == old.keys()
    assert all(torch.equal(state[name], old[name]) for name in old)
    assert (
        head_transfer.summarize(outcomes)
        == f"transferred {len(tags)} of {len(tags)} tags, 0 new, 0 dropped"
    )
    assert {tag.outcome for tag in outcomes} == {"transferred"}


@pytest.mark.parametrize("kind", ["trained", "exported", "published"])
def test_predictions_for_tags_that_stay_are_those_of_the_old_model_on_real_pictures(
    model_folder: Path,
    export_folder: Path,
    preset: Preset,
    tags: list[Tag],
    split: Split,
    tmp_path: Path,
    kind: str,
) -> None:
    folder = {"trained": model_folder, "exported": export_folder}.get(kind, tmp_path)
    if kind == "published":  # as the WD taggers are: fewer columns, in another order
        for name in (backbone.WEIGHTS, backbone.CONFIG):
            shutil.copy(model_folder / name, tmp_path)
        lines = ["name,category", *(f"{tag.name.replace('_', ' ')},{tag.category}" for tag in tags)]
        (tmp_path / "selected_tags.csv").write_text("\n".join(lines), encoding="utf-8")
    new_tags = [*general("not_seen", "red_hair_never_seen"), *reversed(tags[3:])]
    model, outcomes = start(folder, preset, new_tags)
    old = outputs(backbone.load_model(model_folder), split, preset)
    logits = outputs(model, split, preset)
    assert old.std() > 0.1
    torch.testing.assert_close(logits[:, 2:], old[:, 3:].flip(1), rtol=0, atol=1e-6)
    assert Counter(tag.outcome for tag in outcomes) == {
        "transferred": len(tags) - 3,
        "new": 2,
        "dropped": 3,
    }
    assert [tag.name for tag in outcomes[-3:]] == [tag.name for tag in tags[:3]]


def test_another_image_size_resamples_positions_and_keeps_the_head(
    trained: Callable[..., Path], preset: Preset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tagger")
    vit = preset.model_copy(update={"backbone": "test_vit", "image_size": 96})
    tags = general("a", "b", "c")
    folder = trained(tags, vit)
    model, _ = start(folder, vit.model_copy(update={"image_size": 160}), tags)
    assert torch.equal(rows_of(model), rows_of(backbone.load_model(folder)))
    assert model.pos_embed.shape == (1, 101, 64)
    assert "position embeddings resampled from 6 x 6 to 10 x 10" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("count", [5, 150])
def test_a_query_head_with_the_same_tags_is_unchanged(
    trained: Callable[..., Path], preset: Preset, count: int
) -> None:
    tags = general(*(f"tag_{number}" for number in range(count)))
    folder = trained(tags, preset, "query")
    model, _ = start(folder, preset, tags, head="query")
    old = load_file(folder / backbone.WEIGHTS)
    assert all(torch.equal(value, old[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("count", "dropped", "added"),
    [(4, 2, 2), (150, 20, 30), (150, 100, 3), (50, 10, 80)],
    ids=["queries of their own", "shared queries", "from shared to own", "from own to shared"],
)
def test_kept_tags_of_a_query_head_keep_their_logits(
    trained: Callable[..., Path],
    preset: Preset,
    split: Split,
    count: int,
    dropped: int,
    added: int,
) -> None:
    old_tags = general(*(f"tag_{number}" for number in range(count)))
    folder = trained(old_tags, preset, "query")
    tags = [*general(*(f"new_{number}" for number in range(added))), *reversed(old_tags[dropped:])]
    model, outcomes = start(folder, preset, tags, head="query")
    old_logits = outputs(backbone.load_model(folder), split, preset)
    logits = outputs(model, split, preset)
    assert old_logits.std() > 0.1
    torch.testing.assert_close(
        logits[:, added:], old_logits[:, dropped:].flip(1), rtol=1e-5, atol=1e-5
    )
    assert outcomes[0].source == f"mean of all {count - dropped} general"


@pytest.mark.parametrize(("old", "new"), [("linear", "query"), ("query", "linear")])
def test_another_kind_of_head_starts_anew_with_a_warning(
    trained: Callable[..., Path],
    preset: Preset,
    caplog: pytest.LogCaptureFixture,
    old: Head,
    new: Head,
) -> None:
    tags = general("a", "b", "c")
    _, outcomes = start(trained(tags, preset, old), preset, tags, head=new)
    assert {tag.outcome for tag in outcomes} == {"new", "dropped"}
    assert caplog.messages[-1].startswith("The head is newly initialised, without ")
    assert caplog.messages[-1].endswith("its head is of another form.")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("test_convnext", nn.Linear),
        ("test_resnet", nn.Linear),
        ("mobilenetv3_small_050", nn.Linear),
        ("caformer_s18", nn.Linear),  # the last of several layers
        ("samvit_base_patch16", nn.Linear),
        ("resnetv2_18", nn.Conv2d),
    ],
)
def test_heads_of_other_families_are_transferred(
    trained: Callable[..., Path], preset: Preset, name: str, layer: type[nn.Module]
) -> None:
    changes = {"backbone": name, "image_size": 64}
    small = {"depth": 1, "global_attn_indexes": (), "embed_dim": 48, "num_heads": 2}
    changed = preset.model_copy(update=changes | {"model_args": small if "sam" in name else {}})
    folder = trained(general("a", "b", "c"), changed)
    model, _ = start(folder, changed, general("c", "a", "d"), new="mean")
    assert isinstance(last_layer(model), layer)
    rows, old = rows_of(model), rows_of(backbone.load_model(folder))
    assert torch.equal(rows[:2], old[[2, 0]])
    torch.testing.assert_close(rows[2], old[[2, 0]].mean(0))


# Matching of tags

OLD = [
    *general("general", "sensitive", category=9),
    *general("1girl", "longhair", "general", "blonde_hair"),
    *general("miku", category=4),
]


def pairs(outcomes: Sequence[TransferredTag]) -> dict[tuple[str, int], tuple[str, str]]:
    return {(tag.name, tag.category): (tag.outcome, tag.source) for tag in outcomes}


def matched(
    tags: Sequence[Tag], old_tags: Sequence[Tag] = OLD, **aliases: str
) -> dict[tuple[str, int], int]:
    matches = match.match_tags(tags, old_tags, aliases)
    return {(tags[row].name, tags[row].category): old for row, (old, _) in matches.items()}


def test_an_alias_transfers_an_old_tag_to_its_present_name(
    trained: Callable[..., Path], preset: Preset
) -> None:
    folder = trained(OLD, preset)
    tags = [*general("long_hair", "1girl"), *general("hatsune_miku", category=4)]
    aliases = {"longhair": "long_hair", "miku": "hatsune_miku"}
    model, outcomes = start(folder, preset, tags, aliases)
    assert pairs(outcomes)["long_hair", 0] == ("transferred_by_alias", "longhair")
    assert pairs(outcomes)["hatsune_miku", 4] == ("transferred_by_alias", "miku")
    assert pairs(outcomes)["general", 9] == ("dropped", "")
    assert torch.equal(rows_of(model), rows_of(backbone.load_model(folder))[[3, 2, 6]])
    assert (
        head_transfer.summarize(outcomes)
        == "transferred 3 of 3 tags (2 by alias), 0 new, 4 dropped"
    )


def test_a_rating_never_matches_a_tag_of_its_name() -> None:
    assert matched(general("general", category=9)) == {("general", 9): 0}
    assert matched(general("general")) == {("general", 0): 4}
    assert matched(general("general", category=5)) == {("general", 5): 4}
    assert matched(general("sensitive")) == {}
    assert matched(general("1girl", category=9)) == {}


def test_a_tag_of_another_category_matches_if_no_other_does() -> None:
    assert matched(general("miku", category=3)) == {("miku", 3): 6}
    both = [*general("miku", category=3), *general("miku", category=4)]
    assert matched(both) == {("miku", 4): 6}


def test_a_name_matches_before_an_alias() -> None:
    assert matched(general("blonde_hair"), longhair="blonde_hair") == {("blonde_hair", 0): 5}


def test_names_of_old_tags_are_normalised(
    write_file: Callable[[str, str], Path],
) -> None:
    lines = ["category,tag_id,name,best_threshold", '4,1,"Hatsune Miku",0.3']
    lines += [",2,saber \\(fate\\),", "general,3,a,", "77,4,b,", ""]
    tags = layouts.read_tags(write_file("tagger/selected_tags.csv", "\n".join(lines)).parent)
    assert [(tag.name, tag.category) for tag in tags] == [
        ("hatsune_miku", 4),
        ("saber_(fate)", UNKNOWN),
        ("a", 0),
        ("b", UNKNOWN),
    ]
    assert matched(general("saber_(fate)", category=9), tags) == {("saber_(fate)", 9): 1}


NAMES = st.sampled_from(["a", "b", "c_hair", "d_hair", "general", "e_(f)", "A", "x y"])
TAGS = st.lists(
    st.builds(Tag, st.just(-1), NAMES, st.sampled_from([0, 4, 9, UNKNOWN]), st.just(1)),
    max_size=8,
    unique_by=lambda tag: (vocabulary.normalize_name(tag.name), tag.category),
)


@given(tags=TAGS, old_tags=TAGS, aliases=st.dictionaries(NAMES, NAMES))
def test_every_tag_has_one_outcome(
    tags: list[Tag], old_tags: list[Tag], aliases: dict[str, str]
) -> None:
    old_tags = [old._replace(name=vocabulary.normalize_name(old.name)) for old in old_tags]
    matches = match.match_tags(tags, old_tags, aliases)
    matched_rows = [old for old, _ in matches.values()]
    assert len(set(matched_rows)) == len(matched_rows)
    for row, (old, outcome) in matches.items():
        same = old_tags[old].name == vocabulary.normalize_name(tags[row].name)
        assert same == (outcome == "transferred")
        assert same or aliases[old_tags[old].name] == vocabulary.normalize_name(tags[row].name)
    outcomes = head_transfer.build_outcomes(tags, old_tags, matches, [])
    kinds = Counter(tag.outcome for tag in outcomes)
    learnt = [(tag.name, tag.category) for tag in outcomes if tag.outcome != "dropped"]
    assert learnt == [(tag.name, tag.category) for tag in tags]
    assert kinds["transferred"] + kinds["transferred_by_alias"] + kinds["dropped"] == len(old_tags)
    assert len(head_transfer.table_rows(outcomes)) == len(outcomes)
    exact = {(vocabulary.normalize_name(t.name), t.category): row for row, t in enumerate(tags)}
    for number, old_tag in enumerate(old_tags):
        if (row_ := exact.get((old_tag.name, old_tag.category))) is not None:
            assert matches[row_] == (number, "transferred")


# How new tags start

HAIR = [
    *general("red_hair", "blue_hair", "long_hair", "hair_bow", "smile_(object)"),
    *general("rin_hair", category=4),
]


@pytest.mark.parametrize(
    ("new", "name", "category", "origins", "words"),
    [
        (
            "related",
            "green_hair",
            0,
            [0, 1, 2],
            "mean of 3 related: red_hair, blue_hair, long_hair",
        ),
        ("related", "wide_hair_(style)", 0, [0, 1, 2], "mean of 3 related: red_hair, blue_hair, "),
        ("related", "evil_smile", 0, [4], "mean of 1 related: smile_(object)"),
        ("related", "1girl", 0, [0, 1, 2, 3, 4], "mean of all 5 general"),
        ("related", "green_hair", 4, [5], "mean of 1 related: rin_hair"),
        ("related", "green_hair", 1, [0, 1, 2, 3, 4, 5], "mean of all 6"),
        ("mean", "green_hair", 0, [0, 1, 2, 3, 4, 5], "mean of all 6"),
        ("fresh", "green_hair", 0, [], ""),
    ],
)
def test_a_new_tag_starts_by_the_chosen_rule(
    trained: Callable[..., Path],
    preset: Preset,
    new: NewTagStart,
    name: str,
    category: int,
    origins: list[int],
    words: str,
) -> None:
    folder = trained(HAIR, preset)
    tags = [*general(name, category=category), *HAIR]
    model, outcomes = start(folder, preset, tags, new=new)
    torch.manual_seed(4)
    fresh = rows_of(backbone.build_model(preset, len(tags)))
    expected = rows_of(backbone.load_model(folder))[origins].mean(0) if origins else fresh[0]
    torch.testing.assert_close(rows_of(model)[0], expected)
    assert outcomes[0].outcome == "new"
    assert outcomes[0].source.startswith(words) and bool(outcomes[0].source) == bool(words)


def test_without_common_tags_the_head_starts_anew_with_a_warning(
    trained: Callable[..., Path], preset: Preset, caplog: pytest.LogCaptureFixture
) -> None:
    folder = trained(general("a", "b"), preset)
    tags = general("c", "d")
    model, outcomes = start(folder, preset, tags)
    torch.manual_seed(4)
    assert torch.equal(rows_of(model), rows_of(backbone.build_model(preset, 2)))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the model has none of its tags" in caplog.text
    assert head_transfer.summarize(outcomes) == "transferred 0 of 2 tags, 2 new, 2 dropped"


def test_the_table_of_outcomes_has_categories_and_sources() -> None:
    outcomes = [
        TransferredTag("a", 4, "transferred_by_alias", "aa"),
        TransferredTag("b", UNKNOWN, "dropped", ""),
    ]
    assert head_transfer.HEADER == ("name", "category", "outcome", "source")
    assert head_transfer.table_rows(outcomes) == [
        ("a", "character", "transferred_by_alias", "aa"),
        ("b", "", "dropped", ""),
    ]


# Folders that are refused


def error_of(folder: Path, preset: Preset, tags: Sequence[Tag] = tuple(general("a"))) -> str:
    with pytest.raises(TaggerError) as caught:
        start(folder, preset, tags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_missing_or_lists_no_tags_is_refused(
    trained: Callable[..., Path], preset: Preset, tmp_path: Path
) -> None:
    assert "none is no tagger: it is no folder" in error_of(tmp_path / "none", preset)
    folder = trained(general("a"), preset)
    (folder / "vocabulary.csv").unlink()
    message = error_of(folder, preset)
    assert "has neither vocabulary.csv nor selected_tags.csv. Name the folder of a" in message


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("name\n", "lists no tags"),
        ("", "vocabulary.csv cannot be read: it is empty"),
        ("category\n3\n", "line 2 has no 'name'"),
        ("name,category\na,0\nb\n", "line 3: 1 columns, 2 expected"),
        ("name\na\n", "old lists 1 tags, and its model has 2 outputs"),
        ("name\na\nb\nc\n", "old lists 3 tags, and its model has 2 outputs. They are not of one"),
    ],
)
def test_a_list_of_tags_that_is_damaged_or_of_another_model_is_refused(
    trained: Callable[..., Path], preset: Preset, content: str, line: str
) -> None:
    folder = trained(general("a", "b"), preset)
    (folder / "vocabulary.csv").write_text(content)
    assert line in error_of(folder, preset)


def test_damaged_or_missing_weights_are_refused(
    trained: Callable[..., Path], preset: Preset
) -> None:
    folder = trained(general("a", "b"), preset)
    (folder / backbone.WEIGHTS).write_bytes(b"{}")
    assert "model.safetensors is damaged" in error_of(folder, preset)
    (folder / backbone.WEIGHTS).unlink()
    assert "old holds no weights" in error_of(folder, preset)


def test_a_tagger_of_another_backbone_is_refused_with_both_names(
    trained: Callable[..., Path], preset: Preset
) -> None:
    folder = trained(general("a", "b"), preset)
    message = error_of(folder, preset.model_copy(update={"backbone": "test_convnext"}))
    assert "holds no weights of test_convnext, but those of test_efficientnet" in message


def test_a_backbone_with_two_heads_is_refused(trained: Callable[..., Path], preset: Preset) -> None:
    folder = trained(general("a", "b"), preset)
    two = preset.model_copy(
        update={"backbone": "deit_tiny_distilled_patch16_224", "model_args": {"depth": 1}}
    )
    assert "has no single head" in error_of(folder, two)


def test_missing_head_weights_start_the_head_anew(
    trained: Callable[..., Path], preset: Preset, caplog: pytest.LogCaptureFixture
) -> None:
    folder = trained(general("a", "b"), preset)
    entries = load_file(folder / backbone.WEIGHTS)
    body = {name: value for name, value in entries.items() if not name.startswith("classifier")}
    save_file(body, folder / backbone.WEIGHTS)
    start(folder, preset, general("a"))
    assert "its head is of another form" in caplog.text
