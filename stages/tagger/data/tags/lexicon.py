"""The lexicon: all tags read so far, numbered in order of appearance.

A tag has three numberings. Its lexicon number holds within `prepare` only. `prepare` replaces it
with a row of `tags.parquet` when all tags are known. Training uses columns of the vocabulary.

Only distinct names are Python objects: Arrow encodes each batch of texts as numbers. Memory grows
with the distinct names, and by four bytes for each label that the caller keeps.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from tagger.core.vocabulary import normalize_name
from tagger.data.tags.normalize import (
    DROPPED,
    Int32Array,
    Int64Array,
    NormalizedTags,
    normalize_tags,
)
from tagger.data.tags.rules import Rules

TagChange = tuple[str, str, str]  # kind of rule, tag before, tag after

_UNKNOWN = -1


class Lexicon:
    """The numbers, names and categories of tags, and the labels that each rule changed."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._categories = np.empty(0, np.int8)  # (tags,), from a source, else _UNKNOWN
        self._implied: list[tuple[int, int]] = []  # a tag and a tag that it implies
        self._texts = pa.array([], pa.string())  # distinct spellings of tags
        self._tag_of_text = np.empty(0, np.int32)  # (texts,), number of the tag, or DROPPED
        self._label_counts = np.empty(0, np.int64)  # (texts,), labels with this spelling
        self._changed: Counter[TagChange] = Counter()  # labels, except those of aliases

    def __len__(self) -> int:
        return len(self.names)

    def category(self, number: int) -> int:
        """Return the category of a tag: that of the rules, else of the source, else general."""
        rule = self.rules.known_tags.get(self.names[number])
        return rule[0] if rule else max(0, int(self._categories[number]))

    @property
    def changes(self) -> Counter[TagChange]:
        """The number of labels that each rule changed."""
        changes = Counter(self._changed)
        for text, labels in zip(self._texts.to_pylist(), self._label_counts.tolist(), strict=True):
            _, change = self._resolve(normalize_name(text))
            if change:
                changes[change] += labels
        return changes

    def labels(self, tags: Mapping[int | None, pa.Array]) -> csr_array:
        """Return the tags of a batch after all rules, boolean (posts, tags so far).

        tags: list<string> for each post, by category, under None if the category is unknown
        """
        encoded = list(map(_encode, tags.values()))
        texts = self._number_texts(pa.concat_arrays([array.dictionary for _, array in encoded]))
        columns = []
        for category, (starts, array) in zip(tags, encoded, strict=True):
            texts_of_column, texts = np.split(texts, [len(array.dictionary)])
            indices = array.indices.to_numpy()
            columns.append((starts, self._tags_of(texts_of_column, indices, category)))
        normalized = normalize_tags(columns, *self._implications(), self._final_tags())
        self._count_changes(normalized)
        true = np.ones(len(normalized.tags), dtype=np.bool_)
        shape = len(normalized.starts) - 1, len(self)
        return csr_array((true, normalized.tags, normalized.starts), shape=shape)

    def _count_changes(self, normalized: NormalizedTags) -> None:
        self._changed["repeated", "", ""] += normalized.repeated
        for number in np.flatnonzero(normalized.implied).tolist():
            change = "implication", "", self.names[number]
            self._changed[change] += int(normalized.implied[number])
        for number in np.flatnonzero(normalized.renamed).tolist():
            name = self.names[number]
            change = "rename", name, self.rules.renames[name]
            self._changed[change] += int(normalized.renamed[number])

    def _tags_of(self, texts: Int32Array, indices: Int32Array, category: int | None) -> Int32Array:
        """Return the tag of each label, or DROPPED. Labels are given as indices of texts."""
        self._label_counts[texts] += np.bincount(indices, minlength=len(texts))
        tags = self._tag_of_text[texts]
        if category is not None:
            uncategorized = tags[tags != DROPPED]
            uncategorized = uncategorized[self._categories[uncategorized] == _UNKNOWN]
            self._categories[uncategorized] = category
        return np.asarray(tags[indices])

    def _number_texts(self, texts: pa.Array) -> Int32Array:
        """Return the number of each spelling, and add those that are new."""
        indices = pc.index_in(texts, value_set=self._texts)
        numbers = np.array(pc.fill_null(indices, -1).to_numpy(), dtype=np.int32)
        missing = texts.filter(pc.is_null(indices))
        if len(missing):
            new = missing.unique()
            numbers[numbers < 0] = len(self._texts) + pc.index_in(missing, value_set=new).to_numpy()
            tags = [self._resolve(normalize_name(text))[0] for text in new.to_pylist()]
            self._texts = pa.concat_arrays([self._texts, new])
            self._tag_of_text = np.concatenate([self._tag_of_text, np.array(tags, np.int32)])
            self._label_counts = np.concatenate([self._label_counts, np.zeros(len(new), np.int64)])
            fresh = np.full(len(self) - len(self._categories), _UNKNOWN, np.int8)
            self._categories = np.concatenate([self._categories, fresh])
        return numbers

    def _resolve(self, name: str) -> tuple[int, TagChange | None]:
        """Return the tag of a normalized name, or DROPPED, and the rule that changed it."""
        target = self.rules.aliases.get(name, name)
        if target in self.rules.deprecated:
            return DROPPED, ("deprecated", target, "")
        if not target:
            return DROPPED, None
        return self._number(target), ("alias", name, target) if target != name else None

    def _number(self, name: str) -> int:
        """Return the number of a tag. Tags that it implies or is renamed to get numbers, too."""
        new, pending = [], [name]
        while pending:
            tag = pending.pop()
            if tag not in self._numbers:
                self._numbers[tag] = len(self.names)
                self.names.append(tag)
                new.append(tag)
                pending.extend(self.rules.implications.get(tag, ()))
                pending.extend(filter(None, [self.rules.renames.get(tag)]))
        for tag in new:
            for implied in self.rules.implications.get(tag, ()):
                self._implied.append((self._numbers[tag], self._numbers[implied]))
        return self._numbers[name]

    def _implications(self) -> tuple[Int64Array, Int32Array]:
        """Return the starts of the implied tags of each tag, (tags + 1,), and the implied tags."""
        pairs = np.array(self._implied, dtype=np.int32).reshape(-1, 2)
        counts = np.bincount(pairs[:, 0], minlength=len(self))
        order = np.argsort(pairs[:, 0], kind="stable")
        return np.concatenate([[0], np.cumsum(counts)]), pairs[order, 1]

    def _final_tags(self) -> Int32Array:
        """Return the tag that each tag is renamed to, (tags,): itself, another, or DROPPED."""
        final = np.arange(len(self), dtype=np.int32)
        for name, new in self.rules.renames.items():
            number = self._numbers.get(name)
            if number is not None:
                final[number] = self._numbers[new] if new else DROPPED
                if new and self._categories[final[number]] == _UNKNOWN:
                    self._categories[final[number]] = self._categories[number]
        return final


def _encode(lists: pa.Array) -> tuple[Int64Array, pa.DictionaryArray]:
    """Return the starts of the texts of each post, (posts + 1,), and the encoded texts."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    texts = lists.flatten()
    if not pa.types.is_dictionary(texts.type):
        texts = pc.fill_null(texts, "").dictionary_encode()
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), texts
