"""What infer says on the terminal, in each language."""

# ruff: noqa: RUF001  # Chinese has commas of its own

from typing import NamedTuple


class Messages(NamedTuple):
    image: str  # of its path
    heading: str  # of the threshold
    nothing: str  # of the threshold
    per_tag: str  # in place of a number, where thresholds differ
    tagged: str  # of pictures, and of those a second
    skipped: str  # of pictures
    failed: str  # of pictures, and of the file that lists them
    stopped: str  # of the pictures that are left
    resume_hint: str


MESSAGES = {
    "en": Messages(
        image="Picture: {}",
        heading="Predicted tags (confidence > {}):",
        nothing="No tag has a confidence above the threshold {}",
        per_tag="of each tag",
        tagged="tagged: {:,} pictures, {} a second",
        skipped="skipped: {:,} pictures, which were done before",
        failed="failed: {:,} pictures, see {}",
        stopped="stopped: {:,} pictures are left.",
        resume_hint=" Give --skip-existing to go on.",
    ),
    "zh": Messages(
        image="图片: {}",
        heading="预测标签 (置信度 > {}):",
        nothing="没有标签的置信度高于阈值 {}",
        per_tag="各标签自己的阈值",
        tagged="已打标签: {:,} 张，每秒 {} 张",
        skipped="已跳过: {:,} 张，之前做过",
        failed="失败: {:,} 张，见 {}",
        stopped="已停止: 还剩 {:,} 张。",
        resume_hint="加上 --skip-existing 即可接着做。",
    ),
}
