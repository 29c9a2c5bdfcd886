"""What infer prints on the terminal, in each language."""

# ruff: noqa: RUF001  # Chinese has commas of its own

from typing import NamedTuple

from tagger.inference.captions import Caption, Captioner


class Messages(NamedTuple):
    image: str  # of its path
    heading: str  # of the threshold
    nothing: str  # of the threshold
    per_tag: str  # in place of a number, if thresholds differ
    tagged: str  # of images, and of images a second
    skipped: str  # of images
    failed: str  # of images, and of the file that lists them
    stopped: str  # of the images that are left
    resume_hint: str


MESSAGES = {
    "en": Messages(
        image="Image: {}",
        heading="Predicted tags (confidence > {}):",
        nothing="No tag has a confidence above the threshold {}",
        per_tag="of each tag",
        tagged="tagged: {:,} images, {} a second",
        skipped="skipped: {:,} images, which were done before",
        failed="failed: {:,} images, see {}",
        stopped="stopped: {:,} images are left.",
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


def caption_text(caption: Caption, captioner: Captioner, lang: str) -> str:
    """Return what the terminal shows of an image."""
    messages, common = MESSAGES[lang], captioner.common_threshold
    threshold = messages.per_tag if common is None else f"{common:g}"
    lines = [
        messages.image.format(printable(str(caption.image.file))),
        (messages.heading if caption.tags else messages.nothing).format(threshold),
    ]
    for tag in caption.tags:
        name = printable(captioner.tag_format.format(tag.name))
        lines.append(f"{name}: {tag.confidence:.4f}")
    return "\n".join(lines) + "\n"


def printable(name: str) -> str:
    """Return a name fit for a terminal, escaped as in Python if it has control characters."""
    return name if name.isprintable() else repr(name)[1:-1]
