"""Number the tags of posts, and put them right by the rules on the way.

Only distinct names are Python objects: each batch of texts is encoded as numbers by Arrow, and all
that follows is done to sparse matrices (posts, tags). Memory grows with the distinct names, and
with four bytes for each label that the caller keeps.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from tagger.core.vocabulary import normalize_name
from tagger.data.tags.normalize import DROPPED, normalize_tags
from tagger.data.tags.rules import Rules

TagNumbers = npt.NDArray[np.int32]
Starts = npt.NDArray[np.int64]
TagChange = tuple[str, str, str]  # kind of rule, tag before, tag after

_UNKNOWN = -1


class Lexicon:
    """The tags met so far, numbered as they were met, and what the rules did to their labels."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._categories = np.empty(0, np.int8)  # (tags,), what a source named, _UNKNOWN before
        self._implied: list[tuple[int, int]] = []  # a tag and one that it implies
        self._texts = pa.array([], pa.string())  # tags as they are written, each once
        self._meanings = np.empty(0, np.int32)  # (texts,), the number of each, or DROPPED
        self._written = np.empty(0, np.int64)  # (texts,), labels
        self._changed: Counter[TagChange] = Counter()  # labels, less those of aliases

    def __len__(self) -> int:
        return len(self.names)

    def category(self, number: int) -> int:
        """Return the category of a tag: that of the rules, else of the source, else general."""
        known = self.rules.known_tags.get(self.names[number])
        return known[0] if known else max(0, int(self._categories[number]))

    @property
    def changes(self) -> Counter[TagChange]:
        """Return how many labels each rule changed."""
        changes = Counter(self._changed)
        for text, labels in zip(self._texts.to_pylist(), self._written.tolist(), strict=True):
            _, change = self._resolve(normalize_name(text))
            if change:
                changes[change] += labels
        return changes

    def labels(self, tags: Mapping[int | None, pa.Array]) -> csr_array:
        """Return the tags of a batch after all rules, boolean (posts, tags so far).

        tags: list<string> for each post, by category, None where the source does not say
        """
        encoded = list(map(_encode, tags.values()))
        known = self._number_texts(pa.concat_arrays([texts.dictionary for _, texts in encoded]))
        written = []
        for category, (starts, texts) in zip(tags, encoded, strict=True):
            own, known = np.split(known, [len(texts.dictionary)])
            written.append((starts, self._meant(own, texts.indices.to_numpy(), category)))
        settled = normalize_tags(written, *self._implications(), self._last_names())
        self._changed["repeated", "", ""] += settled.repeated
        for number in np.flatnonzero(settled.implied).tolist():
            added = int(settled.implied[number])
            self._changed["implication", "", self.names[number]] += added
        for number in np.flatnonzero(settled.renamed).tolist():
            name = self.names[number]
            change = "rename", name, self.rules.renames[name]
            self._changed[change] += int(settled.renamed[number])
        true = np.ones(len(settled.tags), dtype=np.bool_)
        shape = len(settled.starts) - 1, len(self)
        return csr_array((true, settled.tags, settled.starts), shape=shape)

    def _meant(self, texts: TagNumbers, labels: TagNumbers, category: int | None) -> TagNumbers:
        """Return the tag that is meant by each label, or DROPPED; labels are places in texts."""
        self._written[texts] += np.bincount(labels, minlength=len(texts))
        meant = self._meanings[texts]
        if category is not None:
            named = meant[meant != DROPPED]
            named = named[self._categories[named] == _UNKNOWN]
            self._categories[named] = category
        return np.asarray(meant[labels])

    def _number_texts(self, texts: pa.Array) -> TagNumbers:
        """Return the number of each text as it is written, and learn those that are new."""
        known = pc.index_in(texts, value_set=self._texts)
        numbers = np.array(pc.fill_null(known, -1).to_numpy(), dtype=np.int32)
        unknown = texts.filter(pc.is_null(known))
        if len(unknown):
            new = unknown.unique()
            numbers[numbers < 0] = len(self._texts) + pc.index_in(unknown, value_set=new).to_numpy()
            meant = [self._resolve(normalize_name(text))[0] for text in new.to_pylist()]
            self._texts = pa.concat_arrays([self._texts, new])
            self._meanings = np.concatenate([self._meanings, np.array(meant, np.int32)])
            self._written = np.concatenate([self._written, np.zeros(len(new), np.int64)])
            fresh = np.full(len(self) - len(self._categories), _UNKNOWN, np.int8)
            self._categories = np.concatenate([self._categories, fresh])
        return numbers

    def _resolve(self, name: str) -> tuple[int, TagChange | None]:
        meant = self.rules.aliases.get(name, name)
        if meant in self.rules.deprecated:
            return DROPPED, ("deprecated", meant, "")
        if not meant:
            return DROPPED, None
        return self._number(meant), ("alias", name, meant) if meant != name else None

    def _number(self, name: str) -> int:
        """Return the number of a tag; all that it implies or is renamed to gets one too."""
        met, pending = [], [name]
        while pending:
            one = pending.pop()
            if one not in self._numbers:
                self._numbers[one] = len(self.names)
                self.names.append(one)
                met.append(one)
                pending.extend(self.rules.implications.get(one, ()))
                pending.extend(filter(None, [self.rules.renames.get(one)]))
        for one in met:
            for implied in self.rules.implications.get(one, ()):
                self._implied.append((self._numbers[one], self._numbers[implied]))
        return self._numbers[name]

    def _implications(self) -> tuple[Starts, TagNumbers]:
        """Return where what each tag implies starts, (tags + 1,), and all that is implied."""
        pairs = np.array(self._implied, dtype=np.int32).reshape(-1, 2)
        counts = np.bincount(pairs[:, 0], minlength=len(self))
        order = np.argsort(pairs[:, 0], kind="stable")
        return np.concatenate([[0], np.cumsum(counts)]), pairs[order, 1]

    def _last_names(self) -> TagNumbers:
        """Return the tag whose name each tag is given last, or DROPPED, (tags,)."""
        last = np.arange(len(self), dtype=np.int32)
        for name, new in self.rules.renames.items():
            number = self._numbers.get(name)
            if number is not None:
                last[number] = self._numbers[new] if new else DROPPED
                if new and self._categories[last[number]] == _UNKNOWN:
                    self._categories[last[number]] = self._categories[number]
        return last


def _encode(lists: pa.Array) -> tuple[Starts, pa.DictionaryArray]:
    """Return where the texts of each post start, (posts + 1,), and the texts, encoded."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    texts = lists.flatten()
    if not pa.types.is_dictionary(texts.type):
        texts = pc.fill_null(texts, "").dictionary_encode()
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), texts
