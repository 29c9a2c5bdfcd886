"""The parameters of prepare: which pictures, which posts, which tags."""

from datetime import date
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from tagger.core.vocabulary import Category
from tagger.params.base import Frozen


class DownloadParams(Frozen):
    """How the pictures of `danbooru` are had from the hub."""

    repo: str | None  # data set on the hub; null: only what is there already
    revision: str
    tag_tables: str | None  # data set on the hub with `tags.csv` and `tag_aliases.csv`
    method: Literal["auto", "shards", "members"]  # whole tars, or only the wanted members of each
    connections: PositiveInt  # at a time


class FilterParams(Frozen):
    """Which posts are wanted; null and empty lists want all."""

    ratings: list[Literal["general", "sensitive", "questionable", "explicit"]] | None
    min_score: int | None
    max_score: int | None
    after: date | None  # first day, UTC
    before: date | None  # the first day no longer wanted, UTC
    min_id: int | None
    max_id: int | None
    keep_deleted: bool
    keep_banned: bool
    min_tags: NonNegativeInt  # general tags on a post
    min_side: NonNegativeInt  # pixels, of the shorter side
    max_aspect_ratio: float | None = Field(ge=1)  # longer side over shorter
    required_tags: list[str]  # globs; each must match a tag
    excluded_tags: list[str]  # globs; none may match a tag
    max_posts_per_tag: PositiveInt | None
    capped_categories: list[Category]
    sample_size: PositiveInt | None  # posts, drawn by id
    seed: NonNegativeInt  # of the draws of the two before


class GroupParams(Frozen):
    """Which posts are never parted by a split."""

    parents: bool  # parent and child posts
    duplicates: bool  # the same file twice
    near: int | None = Field(ge=0, le=31)  # bits of 256 in which PDQ hashes may differ


class CopiesParams(Frozen):
    """A smaller copy of the pictures, in tars."""

    side: PositiveInt | None  # pixels, the longest that the shorter side may be; null: no copy
    folder: Path
    format: Literal["webp", "jpeg"]
    quality: int = Field(ge=1, le=100)
    shard_size: PositiveInt  # megabytes


class PrepareParams(Frozen):
    source: Literal["folder", "table", "danbooru"]
    path: Path  # a folder of pictures with sidecars, a table, or Danbooru's metadata.parquet
    more_folders: list[Path]  # folder: further ones
    image_root: Path | None  # table, danbooru: where the pictures are; null: beside `path`
    separator: str = Field(min_length=1)  # between the tags of a text
    path_column: str  # table
    tag_column: str  # table
    rules: Path  # folder of tags, tag_aliases, tag_implications and renames, each where it is there
    verify: Literal["none", "header", "decode"]
    animated: Literal["first", "drop"]  # take the first frame, or leave the picture out
    download: DownloadParams
    filters: FilterParams
    groups: GroupParams
    copies: CopiesParams

    @model_validator(mode="after")
    def _looks_at_what_it_filters(self) -> Self:
        sizes = self.filters.min_side or self.filters.max_aspect_ratio
        wanted = self.animated == "drop" or (self.source == "folder" and sizes)
        if self.verify == "none" and wanted:
            raise ValueError(
                "verify: none sees neither sizes nor frames, by which pictures are to be left "
                "out. Take header or decode"
            )
        return self

    @model_validator(mode="after")
    def _keeps_copies_elsewhere(self) -> Self:
        copies, pictures = self.copies.folder.absolute(), self.image_folder.absolute()
        if self.source == "danbooru" and self.copies.side and copies.is_relative_to(pictures):
            raise ValueError(
                f"copies.folder, {self.copies.folder}, is within {self.image_folder}, where "
                "copies would be taken for originals. Name another"
            )
        return self

    @property
    def image_folder(self) -> Path:
        """Where the paths of a table start, and where Danbooru's pictures are."""
        return self.path.parent if self.image_root is None else self.image_root

    @property
    def image_folders(self) -> list[Path]:
        """Where pictures are that neither Git nor DVC keeps: the originals, and copies of them."""
        originals = [] if self.source == "folder" else [self.image_folder]
        return originals + ([self.copies.folder] if self.copies.side else [])

    @property
    def written_folders(self) -> dict[str, Path]:
        """The folders that are written to besides the outputs, by the parameter."""
        found = {"copies.folder": self.copies.folder} if self.copies.side else {}
        fetches = self.source == "danbooru" and self.download.repo
        return found | ({"image_root": self.image_folder} if fetches else {})

    @property
    def folders(self) -> list[Path]:
        """The folders of pictures that `folder` reads; none for another source."""
        return [self.path, *self.more_folders] if self.source == "folder" else []

    @property
    def rule_folders(self) -> list[Path]:
        """Where tables of tags may be: the user's own first, then those that came with the data."""
        beside = [self.path.parent] if self.source == "danbooru" else self.folders
        return [self.rules, *beside]
