"""Labels follow the rules as if applied by hand: aliases, deprecations, implications, renames."""

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

Texts = list[str | None] | None  # tags of a post as written
Batch = Mapping[int | None, Sequence[Texts]]  # by category

NAMES = ["a", "b", "c", "d", "e", "long_hair", "x_(y)", "null", "^_^"]
SPELLINGS = [*NAMES, "A", " a ", "Long  Hair", "x \\(y\\)", "X_(Y)", "", " ", None]
NAME = st.sampled_from(NAMES)
PAIRS = st.lists(st.tuples(NAME, NAME), max_size=6)


class ReferenceLexicon:
    """Applies the rules to sets of strings."""

    def __init__(self, rules_: Rules) -> None:
        self.rules = rules_
        self.changes: Counter[TagChange] = Counter()
        self.categories: dict[str, int] = {}

    def batch(self, batch: Batch) -> list[set[str]]:
        posts = len(next(iter(batch.values())))
        written: list[list[str]] = [[] for _ in range(posts)]
        for category, lists in batch.items():
            for post, texts in enumerate(lists):
                names = self.names(texts or [])
                written[post] += names
                for name in names if category is not None else ():
                    self.categories.setdefault(name, category or 0)
        for before, after in self.rules.renames.items():
            if after and before in self.categories:
                self.categories.setdefault(after, self.categories[before])
        return [self.rename(self.imply(names)) for names in written]

    def names(self, texts: Sequence[str | None]) -> list[str]:
        names = []
        for name in (vocabulary.normalize_name(text or "") for text in texts):
            target = self.rules.aliases.get(name, name)
            if target in self.rules.deprecated:
                self.changes["deprecated", target, ""] += 1
            elif target:
                names.append(target)
                if target != name:
                    self.changes["alias", name, target] += 1
        return names

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
    """Draw rules with chains and cycles, and read them from tables."""
    rules_ = draw(st.dictionaries(NAME, st.tuples(st.sampled_from([0, 3, 4]), st.booleans())))
    renames = draw(
        st.lists(st.tuples(NAME, st.sampled_from([*NAMES, "new", "初", ""])), max_size=4)
    )
    with TemporaryDirectory() as folder:
        for name, header, rows in (
            ("tags", "name,category,is_deprecated", [(n, *tag) for n, tag in rules_.items()]),
            ("tag_aliases", "alias,tag", draw(PAIRS)),
            ("tag_implications", "alias,tag", draw(PAIRS)),
            ("renames", "from,to", renames),
        ):
            lines = [header, *(",".join(map(str, row)) for row in rows)]
            Path(folder, f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
        return rules.read(Path(folder))


@st.composite
def batches(draw: st.DrawFn) -> list[Batch]:
    texts = st.none() | st.lists(st.sampled_from(SPELLINGS), max_size=6)
    drawn: list[Batch] = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.integers(0, 4))
        categories = draw(st.lists(st.sampled_from([None, 0, 1, 4]), min_size=1, unique=True))
        lists = st.lists(texts, min_size=size, max_size=size)
        drawn.append({category: draw(lists) for category in categories})
    return drawn


def arrow(batch: Batch) -> dict[int | None, pa.Array]:
    """Return the lists as slices of longer Arrow arrays, as sources do."""
    kind = pa.list_(pa.string())
    around: list[Texts] = [["before"], None]
    return {
        category: pa.array([*around, *lists, *around], kind).slice(2, len(lists))
        for category, lists in batch.items()
    }


def sets(lexicon: Lexicon, labels: csr_array) -> list[set[str]]:
    """Return the names on each post, and check that no label is repeated."""
    names = []
    for row in range(labels.shape[0]):
        numbers = labels.indices[labels.indptr[row] : labels.indptr[row + 1]].tolist()
        assert len(set(numbers)) == len(numbers)
        names.append({lexicon.names[number] for number in numbers})
    assert labels.data.all()
    return names


def normalize(lexicon: Lexicon, *posts: Texts, category: int | None = None) -> list[set[str]]:
    return sets(lexicon, lexicon.labels(arrow({category: posts})))


@settings(max_examples=150)
@given(all_rules(), batches())
def test_labels_equal_the_rules_applied_by_hand(rules_: Rules, drawn: list[Batch]) -> None:
    lexicon, reference = Lexicon(rules_), ReferenceLexicon(rules_)
    for batch in drawn:
        assert sets(lexicon, lexicon.labels(arrow(batch))) == reference.batch(batch)
    assert lexicon.changes == reference.changes
    assert len(set(lexicon.names)) == len(lexicon) == len(lexicon.names)
    for number, name in enumerate(lexicon.names):
        assert lexicon.category(number) == reference.category(name)


@settings(max_examples=50)
@given(all_rules(), batches())
def test_labels_do_not_depend_on_the_batches(rules_: Rules, drawn: list[Batch]) -> None:
    posts = [list(lists) for batch in drawn for lists in batch.values()]
    whole, parted = Lexicon(rules_), Lexicon(rules_)
    together = normalize(whole, *(texts for part in posts for texts in part))
    assert together == [names for part in posts for names in normalize(parted, *part)]
    assert whole.changes == parted.changes


def test_spellings_of_a_tag_are_one_tag() -> None:
    lexicon = Lexicon(Rules(known_tags={}, aliases={"lh": "long_hair"}))
    assert normalize(lexicon, ["Long Hair", "long_hair", "lh"], [" long  hair "]) == [
        {"long_hair"},
        {"long_hair"},
    ]
    assert lexicon.names == ["long_hair"]
    assert lexicon.changes == {("repeated", "", ""): 2, ("alias", "lh", "long_hair"): 1}


def test_escaped_parentheses_are_parentheses() -> None:
    lexicon = Lexicon(Rules(known_tags={}))
    assert normalize(lexicon, ["miku \\(a\\)", "miku_(a)"]) == [{"miku_(a)"}]


def test_empty_texts_are_no_tags() -> None:
    lexicon = Lexicon(Rules(known_tags={}))
    assert normalize(lexicon, None, [], ["", "  ", None], ["null", "nan"]) == [
        set(),
        set(),
        set(),
        {"null", "nan"},
    ]
    assert +lexicon.changes == {}


def test_deprecated_tags_and_their_aliases_are_dropped_and_imply_nothing() -> None:
    rules_ = Rules(
        known_tags={},
        aliases={"older": "old"},
        implications={"old": ("new",), "a": ("new",)},
        deprecated=frozenset({"old"}),
    )
    lexicon = Lexicon(rules_)
    assert normalize(lexicon, ["old", "older"], ["a"]) == [set(), {"a", "new"}]
    assert +lexicon.changes == {("deprecated", "old", ""): 2, ("implication", "", "new"): 1}


def test_renames_apply_last_and_only_once() -> None:
    rules_ = Rules(
        known_tags={},
        implications={"cat": ("animal",), "beast": ("wild",)},
        renames={"cat": "animal", "animal": "beast", "wild": ""},
    )
    lexicon = Lexicon(rules_)
    assert normalize(lexicon, ["cat"], ["beast"], ["animal"]) == [
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


def test_category_is_that_of_the_rules_else_of_the_source_else_general() -> None:
    rules_ = Rules(
        known_tags={"a": (3, -1)}, implications={"b": ("implied",)}, renames={"d": "named"}
    )
    lexicon = Lexicon(rules_)
    normalize(lexicon, ["a", "b", "c"])
    normalize(lexicon, ["a", "b", "d"], category=4)
    normalize(lexicon, ["b"], category=1)  # what was said first counts
    assert {name: lexicon.category(number) for number, name in enumerate(lexicon.names)} == {
        "a": 3,
        "b": 4,
        "c": 0,
        "d": 4,
        "implied": 0,
        "named": 4,
    }


@pytest.mark.parametrize("kind", ["implications", "renames"])
def test_chains_of_thousands_of_rules_are_followed(kind: str) -> None:
    names = [f"t{number:04d}" for number in range(3_000)]
    if kind == "renames":
        rules_ = Rules(known_tags={}, renames=dict(itertools.pairwise(names)))
        expected = {"t0001"}
    else:
        chain = {name: (following,) for name, following in itertools.pairwise(names)}
        rules_ = Rules(known_tags={}, implications=chain | {"t0000": tuple(names[1:])})
        expected = set(names)
    assert normalize(Lexicon(rules_), ["t0000"]) == [expected]


def test_compiled_code_for_many_labels_gives_the_same_labels() -> None:
    random = np.random.default_rng(0)
    rules_ = Rules(
        known_tags={},
        aliases={"t1": "t2"},
        implications={"t3": ("t4", "t9", "unwritten"), "t5": ("t6",)},
        deprecated=frozenset({"t7"}),
        renames={"t8": "t3", "t9": "", "t6": "new"},
    )
    lexicon, reference = Lexicon(rules_), ReferenceLexicon(rules_)
    batch: Batch = {
        category: [[f"t{tag}" for tag in random.integers(0, 30, 9)] for _ in range(40)]
        for category in (None, 0, 4)
    }
    few = lexicon.labels(arrow(batch))
    assert sets(lexicon, few) == reference.batch(batch)
    before = Counter(lexicon.changes)
    times = 700  # so many labels that the compiled code is used
    many = lexicon.labels(arrow({category: [*lists] * times for category, lists in batch.items()}))
    assert (many.indices.reshape(times, -1) == few.indices).all()
    assert (np.diff(many.indptr).reshape(times, -1) == np.diff(few.indptr)).all()
    assert lexicon.changes == {change: n * (times + 1) for change, n in before.items()}
