"""The texts of the page, in each language."""

# ruff: noqa: RUF001  # Chinese has commas of its own

from collections.abc import Mapping
from typing import NamedTuple


class PageMessages(NamedTuple):
    title: str
    model: str  # name, number of tags, side in pixels, device
    drop: str
    tagging: str
    images: str
    failures: str
    restart: str
    thresholds: str
    kinds: Mapping[str, str]  # of thresholds
    categories: Mapping[str, str]
    no_tags: str
    below_threshold: str  # note on the likeliest rating
    caption: str
    spaces: str
    escape: str
    download: str
    saliency_hints: Mapping[str, str]  # how to see it, or why not
    saliency_shown: str  # tag
    saliency_empty: str  # tag


MESSAGES = {
    "en": PageMessages(
        title="Tag illustrations",
        model="{} · {:,} tags · {} px · {}",
        drop="Drop images here, or click to choose some",
        tagging="Tagging",
        images="Images",
        failures="Not read: {:,} of {:,}",
        restart="Start over",
        thresholds="Threshold of a tag",
        kinds={"best": "its own", "category": "its category's", "own": "set by me"},
        categories={
            "rating": "Rating",
            "general": "General",
            "character": "Character",
            "copyright": "Copyright",
            "artist": "Artist",
            "meta": "Meta",
        },
        no_tags="No tag reaches its threshold.",
        below_threshold="the likeliest, below its threshold",
        caption="Caption",
        spaces="Spaces for underscores",
        escape=r"Escape parentheses \( \)",
        download="Download {:,} × .txt (zip)",
        saliency_hints={
            "how": "Choose a tag to see where the model looks for it.",
            "weights": "Where the model looks for a tag is not shown: "
            "there is no model.safetensors and config.json beside it.",
            "torch": "Where the model looks for a tag is not shown: "
            "torch and timm are not installed.",
        },
        saliency_shown="Where the model looks for “{}”. Choose it again for the image alone.",
        saliency_empty="Nothing in this image supports “{}”.",
    ),
    "zh": PageMessages(
        title="给插画打标签",
        model="{} · {:,} 个标签 · {} 像素 · {}",
        drop="把图片拖到这里，或点击选择，可以多张",
        tagging="正在打标签",
        images="图片",
        failures="未能读取：{:,} 张，共 {:,} 张",
        restart="重新开始",
        thresholds="标签的阈值",
        kinds={"best": "各标签自己的", "category": "所属类别的", "own": "自己设定"},
        categories={
            "rating": "分级",
            "general": "一般",
            "character": "角色",
            "copyright": "作品",
            "artist": "画师",
            "meta": "元信息",
        },
        no_tags="没有标签达到阈值。",
        below_threshold="最可能的分级，但低于阈值",
        caption="标签文本",
        spaces="下划线换成空格",
        escape=r"括号加反斜杠 \( \)",
        download="下载 {:,} 个 .txt（zip）",
        saliency_hints={
            "how": "点一个标签，看模型依据的是图中哪里。",
            "weights": "无法显示模型所看的位置：模型旁边没有 model.safetensors 和 config.json。",
            "torch": "无法显示模型所看的位置：没有安装 torch 和 timm。",
        },
        saliency_shown="模型给出“{}”时所看的位置。再点一次恢复原图。",
        saliency_empty="图中没有支持“{}”的地方。",
    ),
}
