"""Labels are put right as by hand: name, alias, deprecated, implications, renames, post by post."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tagger.core import vocabulary
from tagger.data.tags import rules
from tagger.data.tags.lexicon import Lexicon, TagChange
from tagger.data.tags.rules import Rules
from tagger.system import jit

Texts = list[str | None] | None  # of a post, as they are written
Batch = Mapping[int | None, Sequence[Texts]]  # by category

NAMES = ["a", "b", "c", "d", "e", "long_hair", "x_(y)", "null", "^_^"]
WRITTEN = [*NAMES, "A", " a ", "Long  Hair", "x \\(y\\)", "X_(Y)", "", " ", None]
ONE = st.sampled_from(NAMES)
PAIRS = st.lists(st.tuples(ONE, ONE), max_size=6)


class ByHand:
    """The reference: sets of strings."""

    def __init__(self, known: Rules) -> None:
        self.rules = known
        self.changes: Counter[TagChange] = Counter()
        self.categories: dict[str, int] = {}

    def batch(self, batch: Batch) -> list[set[str]]:
        posts = len(next(iter(batch.values())))
        written: list[list[str]] = [[] for _ in range(posts)]
        for category, lists in batch.items():
            for post, texts in enumerate(lists):
                found = self.names(texts or [])
                written[post] += found
                for name in found if category is not None else ():
                    self.categories.setdefault(name, category or 0)
        for before, after in self.rules.renames.items():
            if after and before in self.categories:
                self.categories.setdefault(after, self.categories[before])
        return [self.rename(self.imply(names)) for names in written]

    def names(self, texts: Sequence[str | None]) -> list[str]:
        found = []
        for name in (vocabulary.normalize_name(text or "") for text in texts):
            meant = self.rules.aliases.get(name, name)
            if meant in self.rules.deprecated:
                self.changes["deprecated", meant, ""] += 1
            elif meant:
                found.append(meant)
                if meant != name:
                    self.changes["alias", name, meant] += 1
        return found

    def imply(self, names: list[str]) -> set[str]:
        written = set(names)
        self.changes["repeated", "", ""] += len(names) - len(written)
        implied = {other for name in written for other in self.rules.implications.get(name, ())}
        for name in implied - written:
            self.changes["implication", "", name] += 1
        return written | implied

    def rename(self, names: set[str]) -> set[str]:
        for name in names & self.rules.renames.keys():
            self.changes["rename", name, self.rules.renames[name]] += 1
        return {self.rules.renames.get(name, name) for name in names} - {""}

    def category(self, name: str) -> int:
        table = self.rules.known_tags.get(name)
        return table[0] if table else self.categories.get(name, 0)


@st.composite
def all_rules(draw: st.DrawFn) -> Rules:
    """Draw tables and read them: chains and cycles among them."""
    known = draw(st.dictionaries(ONE, st.tuples(st.sampled_from([0, 3, 4]), st.booleans())))
    renames = draw(st.lists(st.tuples(ONE, st.sampled_from([*NAMES, "new", "初", ""])), max_size=4))
    with TemporaryDirectory() as folder:
        for name, header, rows in (
            ("tags", "name,category,is_deprecated", [(n, *tag) for n, tag in known.items()]),
            ("tag_aliases", "alias,tag", draw(PAIRS)),
            ("tag_implications", "alias,tag", draw(PAIRS)),
            ("renames", "from,to", renames),
        ):
            lines = [header, *(",".join(map(str, row)) for row in rows)]
            Path(folder, f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
        return rules.read(Path(folder))


@st.composite
def batches(draw: st.DrawFn) -> list[Batch]:
    texts = st.none() | st.lists(st.sampled_from(WRITTEN), max_size=6)
    drawn: list[Batch] = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.integers(0, 4))
        categories = draw(st.lists(st.sampled_from([None, 0, 1, 4]), min_size=1, unique=True))
        lists = st.lists(texts, min_size=size, max_size=size)
        drawn.append({category: draw(lists) for category in categories})
    return drawn


def arrow(batch: Batch) -> dict[int | None, pa.Array]:
    """Return the lists in Arrow, as a slice of more, which is how sources give them."""
    kind = pa.list_(pa.string())
    around: list[Texts] = [["before"], None]
    return {
        category: pa.array([*around, *lists, *around], kind).slice(2, len(lists))
        for category, lists in batch.items()
    }


def sets(lexicon: Lexicon, labels: csr_array) -> list[set[str]]:
    """Return the names on each post; each may be there once only."""
    found = []
    for row in range(labels.shape[0]):
        numbers = labels.indices[labels.indptr[row] : labels.indptr[row + 1]].tolist()
        assert len(set(numbers)) == len(numbers)
        found.append({lexicon.names[number] for number in numbers})
    assert labels.data.all()
    return found


def put_right(lexicon: Lexicon, *posts: Texts, category: int | None = None) -> list[set[str]]:
    return sets(lexicon, lexicon.labels(arrow({category: posts})))


@settings(max_examples=150)
@given(all_rules(), batches())
def test_labels_are_those_put_right_by_hand(known: Rules, drawn: list[Batch]) -> None:
    lexicon, by_hand = Lexicon(known), ByHand(known)
    for batch in drawn:
        assert sets(lexicon, lexicon.labels(arrow(batch))) == by_hand.batch(batch)
    assert lexicon.changes == by_hand.changes
    assert len(set(lexicon.names)) == len(lexicon) == len(lexicon.names)
    for number, name in enumerate(lexicon.names):
        assert lexicon.category(number) == by_hand.category(name)


@settings(max_examples=50)
@given(all_rules(), batches())
def test_labels_do_not_hang_on_how_posts_are_batched(known: Rules, drawn: list[Batch]) -> None:
    posts = [list(lists) for batch in drawn for lists in batch.values()]
    whole, parted = Lexicon(known), Lexicon(known)
    together = put_right(whole, *(texts for part in posts for texts in part))
    assert together == [names for part in posts for names in put_right(parted, *part)]
    assert whole.changes == parted.changes


def test_texts_that_mean_one_tag_are_one_tag() -> None:
    lexicon = Lexicon(Rules(known_tags={}, aliases={"lh": "long_hair"}))
    assert put_right(lexicon, ["Long Hair", "long_hair", "lh"], [" long  hair "]) == [
        {"long_hair"},
        {"long_hair"},
    ]
    assert lexicon.names == ["long_hair"]
    assert lexicon.changes == {("repeated", "", ""): 2, ("alias", "lh", "long_hair"): 1}


def test_escaped_parentheses_are_parentheses() -> None:
    lexicon = Lexicon(Rules(known_tags={}))
    assert put_right(lexicon, ["miku \\(a\\)", "miku_(a)"]) == [{"miku_(a)"}]


def test_nothing_is_no_tag() -> None:
    lexicon = Lexicon(Rules(known_tags={}))
    assert put_right(lexicon, None, [], ["", "  ", None], ["null", "nan"]) == [
        set(),
        set(),
        set(),
        {"null", "nan"},
    ]
    assert +lexicon.changes == {}


def test_a_deprecated_tag_implies_nothing_and_no_alias_saves_it() -> None:
    known = Rules(
        known_tags={},
        aliases={"older": "old"},
        implications={"old": ("new",), "a": ("new",)},
        deprecated=frozenset({"old"}),
    )
    lexicon = Lexicon(known)
    assert put_right(lexicon, ["old", "older"], ["a"]) == [set(), {"a", "new"}]
    assert +lexicon.changes == {("deprecated", "old", ""): 2, ("implication", "", "new"): 1}


def test_renames_come_last_and_are_not_followed() -> None:
    known = Rules(
        known_tags={},
        implications={"cat": ("animal",), "beast": ("wild",)},
        renames={"cat": "animal", "animal": "beast", "wild": ""},
    )
    lexicon = Lexicon(known)
    assert put_right(lexicon, ["cat"], ["beast"], ["animal"]) == [
        {"animal", "beast"},
        {"beast"},
        {"beast"},
    ]
    assert +lexicon.changes == {
        ("implication", "", "animal"): 1,
        ("implication", "", "wild"): 1,
        ("rename", "cat", "animal"): 1,
        ("rename", "animal", "beast"): 2,
        ("rename", "wild", ""): 1,
    }


def test_a_category_is_that_of_the_table_else_of_the_source_else_general() -> None:
    known = Rules(
        known_tags={"a": (3, -1)}, implications={"b": ("implied",)}, renames={"d": "named"}
    )
    lexicon = Lexicon(known)
    put_right(lexicon, ["a", "b", "c"])
    put_right(lexicon, ["a", "b", "d"], category=4)
    put_right(lexicon, ["b"], category=1)  # what was said first counts
    assert {name: lexicon.category(number) for number, name in enumerate(lexicon.names)} == {
        "a": 3,
        "b": 4,
        "c": 0,
        "d": 4,
        "implied": 0,
        "named": 4,
    }


@pytest.mark.parametrize("kind", ["implications", "renames"])
def test_a_chain_of_thousands_is_followed(kind: str) -> None:
    names = [f"t{number:04d}" for number in range(3_000)]
    if kind == "renames":
        known = Rules(known_tags={}, renames=dict(itertools.pairwise(names)))
        expected = {"t0001"}
    else:
        chain = {name: (following,) for name, following in itertools.pairwise(names)}
        known = Rules(known_tags={}, implications=chain | {"t0000": tuple(names[1:])})
        expected = set(names)
    assert put_right(Lexicon(known), ["t0000"]) == [expected]


def test_compiled_for_very_many_labels_they_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "_INTERPRETED", 0)
    random = np.random.default_rng(0)
    known = Rules(
        known_tags={},
        aliases={"t1": "t2"},
        implications={"t3": ("t4", "t9", "unwritten"), "t5": ("t6",)},
        deprecated=frozenset({"t7"}),
        renames={"t8": "t3", "t9": "", "t6": "new"},
    )
    lexicon, by_hand = Lexicon(known), ByHand(known)
    for size in (40, 0, 1, 25):
        batch: Batch = {
            category: [[f"t{tag}" for tag in random.integers(0, 30, 9)] for _ in range(size)]
            for category in (None, 0, 4)
        }
        assert sets(lexicon, lexicon.labels(arrow(batch))) == by_hand.batch(batch)
    assert lexicon.changes == by_hand.changes
