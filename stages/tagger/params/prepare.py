"""The parameters of prepare: images, posts and tags."""

from datetime import date
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from tagger.core.vocabulary import Category
from tagger.params.base import Frozen


class DownloadParams(Frozen):
    """How images of `danbooru` are downloaded from the hub."""

    repo: str | None  # data set on the hub; null: no download
    revision: str
    tag_tables: str | None  # data set on the hub with `tags.csv` and `tag_aliases.csv`
    method: Literal["auto", "shards", "members"]  # whole tars, or only the needed members of each
    connections: PositiveInt  # in parallel


class FilterParams(Frozen):
    """Which posts to use. Null and empty lists accept all."""

    ratings: list[Literal["general", "sensitive", "questionable", "explicit"]] | None
    min_score: int | None
    max_score: int | None
    after: date | None  # first day, UTC
    before: date | None  # day after the last, UTC
    min_id: int | None
    max_id: int | None
    keep_deleted: bool
    keep_banned: bool
    min_tags: NonNegativeInt  # general tags on a post
    min_side: NonNegativeInt  # pixels, of the shorter side
    max_aspect_ratio: float | None = Field(ge=1)  # longer side divided by shorter side
    required_tags: list[str]  # globs; a post needs a tag for each
    excluded_tags: list[str]  # globs; a post with a matching tag is rejected
    max_posts_per_tag: PositiveInt | None  # of each tag in capped_categories
    capped_categories: list[Category]
    sample_size: PositiveInt | None  # posts, drawn by id
    seed: NonNegativeInt  # of max_posts_per_tag and sample_size


class GroupParams(Frozen):
    """Which posts stay together in a split."""

    parents: bool  # parent and child posts
    duplicates: bool  # identical files
    near: int | None = Field(ge=0, le=31)  # largest distance of two PDQ hashes, bits of 256


class CopiesParams(Frozen):
    """Smaller copies of the images, in tars."""

    side: PositiveInt | None  # longest shorter side, pixels; null: no copies
    folder: Path
    format: Literal["webp", "jpeg"]
    quality: int = Field(ge=1, le=100)
    shard_size: PositiveInt  # megabytes


class PrepareParams(Frozen):
    source: Literal["folder", "table", "danbooru"]
    path: Path  # a folder of images with sidecars, a table, or Danbooru's metadata.parquet
    more_folders: list[Path]  # folder: further folders
    image_root: Path | None  # table, danbooru: folder of the images; null: the folder of `path`
    separator: str = Field(min_length=1)  # between the tags of a text
    path_column: str  # table
    tag_column: str  # table
    rules: Path  # folder of tags, tag_aliases, tag_implications and renames, all optional
    verify: Literal["none", "header", "decode"]
    animated: Literal["first", "drop"]  # use the first frame, or reject the image
    download: DownloadParams
    filters: FilterParams
    groups: GroupParams
    copies: CopiesParams

    @model_validator(mode="after")
    def _verifies_what_it_filters(self) -> Self:
        filters_sizes = self.filters.min_side or self.filters.max_aspect_ratio
        needs_header = self.animated == "drop" or (self.source == "folder" and filters_sizes)
        if self.verify == "none" and needs_header:
            raise ValueError(
                "verify: none reads neither sizes nor frames, but a filter needs them. "
                "Set header or decode"
            )
        return self

    @model_validator(mode="after")
    def _keeps_copies_apart(self) -> Self:
        copies, images = self.copies.folder.absolute(), self.image_folder.absolute()
        if self.source == "danbooru" and self.copies.side and copies.is_relative_to(images):
            raise ValueError(
                f"copies.folder, {self.copies.folder}, is within {self.image_folder}, where "
                "copies would count as originals. Name another"
            )
        return self

    @property
    def image_folder(self) -> Path:
        """Where the paths of a table start, and where Danbooru's images are."""
        return self.path.parent if self.image_root is None else self.image_root

    @property
    def image_folders(self) -> list[Path]:
        """The folders of originals and copies that neither Git nor DVC keeps."""
        originals = [] if self.source == "folder" else [self.image_folder]
        return originals + ([self.copies.folder] if self.copies.side else [])

    @property
    def written_folders(self) -> dict[str, Path]:
        """The folders that `prepare` writes besides its outputs, by parameter."""
        folders = {"copies.folder": self.copies.folder} if self.copies.side else {}
        downloads = self.source == "danbooru" and self.download.repo
        return folders | ({"image_root": self.image_folder} if downloads else {})

    @property
    def folders(self) -> list[Path]:
        """The image folders of source `folder`, none for other sources."""
        return [self.path, *self.more_folders] if self.source == "folder" else []

    @property
    def rule_folders(self) -> list[Path]:
        """The folders of tag tables: the user's, then those beside the data."""
        beside = [self.path.parent] if self.source == "danbooru" else self.folders
        return [self.rules, *beside]
