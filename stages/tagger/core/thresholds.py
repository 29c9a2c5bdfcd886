"""The confidence from which on a tag is given: fitted on validation, used everywhere after."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from tagger.core import files
from tagger.core.arrays import Floats
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import CATEGORIES, Tag

ALL = "all"  # in the column `category`: the threshold over every tag

Kind = Literal["global", "category", "tag"]  # whose threshold each tag has
Key = tuple[str, str]  # category and name
Objective = Literal["f1", "precision_recall", "precision", "recall"]


class Aim(NamedTuple):
    """What thresholds are chosen by.

    f1: the best there is; precision_recall: where the two are equal, which is where as many are
    given as there are; precision, recall: the target, and with it as much as can be of the other
    """

    by: Objective = "f1"
    target: float | None = None

    def __str__(self) -> str:
        wanted = self.by in ("precision", "recall") and self.target is not None
        return f"{self.by} {self.target:g}" if wanted else self.by


class Policy(Protocol):
    """Which thresholds are wanted, as `params.yaml` says it."""

    @property
    def kind(self) -> Kind: ...
    @property
    def by(self) -> Objective: ...
    @property
    def target(self) -> float | None: ...


class Threshold(NamedTuple):
    """A row of thresholds.csv. `name` is empty where it stands for more than one tag."""

    category: str
    name: str
    threshold: float
    support: int  # positive pairs of picture and tag in validation
    f1: float
    precision: float
    recall: float
    method: str


def per_tag(rows: Sequence[Threshold], tags: Sequence[Tag], policy: Policy | Kind) -> Floats:
    """Return the threshold of each tag, (tags,), by a policy, or by its kind whatever the aim.

    Raises TaggerError where the thresholds are of other tags, or were fitted by another aim.
    """
    kind = policy if isinstance(policy, str) else policy.kind
    keys: list[Key]
    if kind == "tag":
        keys = [(CATEGORIES[tag.category], tag.name) for tag in tags]
    else:
        keys = [(ALL if kind == "global" else CATEGORIES[tag.category], "") for tag in tags]
    own = {(row.category, row.name): row for row in rows}
    _check(own, keys)
    if not isinstance(policy, str):
        aim = str(Aim(policy.by, policy.target))
        other = [own[key].method for key in keys if own[key].method.partition(",")[0] != aim]
        if other:
            raise TaggerError(
                f"The thresholds are fitted by {other[0]!r}, not by {aim!r}. Evaluate again."
            )
    return np.array([own[key].threshold for key in keys])


def _check(own: Mapping[Key, Threshold], keys: Sequence[Key]) -> None:
    """Raise TaggerError where the thresholds are not those of the tags looked for."""
    missing = [key for key in keys if key not in own]
    if missing and not missing[0][1]:
        raise TaggerError(f"The thresholds name no category {missing[0][0]!r}. Evaluate again.")
    foreign = own.keys() - set(keys) if keys and keys[0][1] else set()
    odd = [*missing, *sorted(key for key in foreign if key[1])]
    if odd:
        category, name = odd[0]
        told = f"have none for {name!r} ({category})" if missing else f"have one for {name!r}"
        raise TaggerError(
            f"The thresholds are of another vocabulary: they {told}"
            f"{'' if missing else f' ({category}), which the model lacks'}. Evaluate again."
        )


def read_category_thresholds(path: Path) -> dict[str, float]:
    """Return the threshold of each category, from our table or from that of an export."""
    try:
        rows = files.read_csv(files.require(path))
        if rows and "alpha" in rows[0]:
            return {row["name"]: float(row["threshold"]) for row in rows}
        return {row["category"]: float(row["threshold"]) for row in rows if not row["name"]}
    except (KeyError, ValueError) as error:
        raise TaggerError(f"{path} is no table of thresholds ({error}). Evaluate again.") from None


def write(rows: Sequence[Threshold], path: Path) -> None:
    files.write_csv(path, Threshold._fields, rows)


def read(path: Path) -> list[Threshold]:
    """Return the rows that `write` left. Raises TaggerError for a file of another form."""
    try:
        return [
            Threshold(
                category=row["category"],
                name=row["name"],
                threshold=float(row["threshold"]),
                support=int(row["support"]),
                f1=float(row["f1"]),
                precision=float(row["precision"]),
                recall=float(row["recall"]),
                method=row["method"],
            )
            for row in files.read_csv(files.require(path))
        ]
    except (KeyError, ValueError) as error:
        raise TaggerError(f"{path} is no table of thresholds ({error}). Evaluate again.") from None
