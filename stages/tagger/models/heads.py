"""Heads, which turn features into logits: timm's linear layer, or learned queries."""

from collections.abc import Callable, Hashable
from typing import Any, Literal, TypeAlias

import torch
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn
from torch.nn import functional

from tagger.core.errors import TaggerError

Head: TypeAlias = Literal["linear", "query"]

_QUERIES = 100  # the paper's number of groups for thousands of tags
_PER_HEAD = 64  # width of an attention head


def logits_and_embeddings(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (batch, tags) and embeddings (batch, features) of a model with either head.

    pixels: (batch, 3, height, width), normalised
    The embedding is what the backbone pools: all that a linear head sees of an image.
    """
    if isinstance(model, QueryTagger):
        return model.logits_and_embeddings(pixels)
    timm_model: Any = model
    features = timm_model.forward_features(pixels)
    embedding: Tensor = timm_model.forward_head(features, pre_logits=True)
    return timm_model.get_classifier()(embedding), embedding


class QueryHead(nn.Module):
    """Learned queries attend to the tokens of an image, each for a group of tags.

    The decoder of ML-Decoder (Ridnik et al. 2021, https://arxiv.org/abs/2111.12933): no attention
    among the queries, so the cost grows with the number of queries, not of tags. Unlike there, the
    queries are learned and not projected (the keys are projected already), and they also attend to
    what the backbone pools, so that its pooling layers keep learning.

    A new head gives tag t, by its place in the vocabulary, to query t * queries // tags: runs of
    a sorted vocabulary, of sizes that differ by one at most. `query_of_tag` is saved with the
    weights. A tag's row means little to another query: to move rows, or to put them into the
    head of another vocabulary, move the rows of all `per_tag`, through `load_state_dict`.
    """

    query_of_tag: Tensor  # (tags,)
    # The groups, each padded to the size of the largest: the tag at each place, (queries * size,),
    # and the place of each tag, (tags,).
    tag_of_place: Tensor
    place_of_tag: Tensor

    def __init__(self, features: int, pooled: int, tags: int, queries: int, width: int) -> None:
        """features, pooled: channels of a token, and of the backbone's embedding."""
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.norm_tokens = nn.LayerNorm(features)
        self.norm_pooled = nn.LayerNorm(pooled)
        self.from_tokens = nn.Linear(features, 2 * width)  # keys and values
        self.from_pooled = nn.Linear(pooled, 2 * width)
        self.attended = nn.Linear(width, width)
        self.norm_hidden = nn.LayerNorm(width)
        self.hidden = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(tags, width), std=0.02))
        self.bias = nn.Parameter(torch.zeros(tags))
        # Entries with a row per tag: its query if no other tag shares it, else the number of it.
        self.per_tag = ("queries" if queries == tags else "query_of_tag", "weight", "bias")
        query_of_tag = torch.arange(tags, device="cpu") * queries // tags
        self.register_buffer("query_of_tag", query_of_tag.to(self.weight.device))
        self._lay_out(query_of_tag)
        self.register_load_state_dict_post_hook(_update_layout)  # type: ignore[no-untyped-call]

    def _lay_out(self, query_of_tag: Tensor) -> None:
        """Give each tag a place among those of its query."""
        queries, tags = len(self.queries), torch.arange(len(self.weight), device="cpu")
        sizes = query_of_tag.bincount(minlength=queries)
        order = query_of_tag.argsort(stable=True)
        rank = torch.empty_like(tags)  # of a tag in its group
        rank[order] = tags - (sizes.cumsum(0) - sizes)[query_of_tag[order]]
        place_of_tag = query_of_tag * sizes.max() + rank
        tag_of_place = tags.new_zeros(queries * int(sizes.max()))  # tag 0 where a group is short
        tag_of_place[place_of_tag] = tags
        for name, laid in (("tag_of_place", tag_of_place), ("place_of_tag", place_of_tag)):
            self.register_buffer(name, laid.to(self.weight.device), persistent=False)

    def forward(self, tokens: Tensor, pooled: Tensor) -> Tensor:
        """(batch, tokens, features) and (batch, pooled features) -> (batch, tags)."""
        queries, width = self.queries.shape
        heads = (width // _PER_HEAD, _PER_HEAD)
        pairs = torch.cat(  # (batch, 1 + tokens, 2 * width)
            [
                self.from_pooled(self.norm_pooled(pooled))[:, None],
                self.from_tokens(self.norm_tokens(tokens)),
            ],
            dim=1,
        )
        pairs = pairs.view(pairs.shape[0], -1, 2, *heads).permute(2, 0, 3, 1, 4)
        keys, values = pairs.unbind(0)  # (batch, heads, 1 + tokens, 64)
        queries_by_head = self.queries.view(-1, *heads).transpose(0, 1)  # (heads, queries, 64)
        queries_by_head = queries_by_head.expand(keys.shape[0], -1, -1, -1)
        attended = functional.scaled_dot_product_attention(queries_by_head, keys, values)
        outputs = self.queries + self.attended(attended.transpose(1, 2).flatten(2))
        outputs = self.norm(outputs + self.hidden(self.norm_hidden(outputs)))
        rows = functional.embedding(self.tag_of_place, self.weight).view(queries, -1, width)
        grouped = torch.einsum("bqw,qgw->bqg", outputs, rows)  # (batch, queries, group)
        return grouped.flatten(1).index_select(1, self.place_of_tag) + self.bias


def _update_layout(head: nn.Module, _: object) -> None:
    if isinstance(head, QueryHead) and not head.query_of_tag.is_meta:
        head._lay_out(head.query_of_tag.cpu())


class QueryTagger(nn.Module):
    """A timm backbone with a query head, used and trained like a model of timm."""

    def __init__(
        self, backbone: Any, tags: int, queries: int = _QUERIES, width: int | None = None
    ) -> None:
        """Put the head on a backbone that was built with `num_classes=0`.

        queries: at most; never more than tags
        width: of the head, a multiple of 64; None: about half the backbone's, from 128, so that
            a group's rows can differ in all its tags, to the paper's 768
        """
        super().__init__()
        self.backbone: Any = backbone
        features, pooled = backbone.num_features, backbone.head_hidden_size
        width = width or min(max(128, round(features / 2 / _PER_HEAD) * _PER_HEAD), 768)
        self.decoder = QueryHead(features, pooled, tags, min(queries, tags), width)
        self.num_classes = tags
        self.num_features, self.head_hidden_size = features, pooled
        self.pretrained_cfg: Any = backbone.pretrained_cfg

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) -> logits (batch, tags)."""
        return self.logits_and_embeddings(pixels)[0]

    def logits_and_embeddings(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone.forward_features(pixels)
        embedding: Tensor = self.backbone.forward_head(features, pre_logits=True)
        return self.decoder(self._tokens(features), embedding), embedding

    def _tokens(self, features: object) -> Tensor:
        """Return (batch, tokens, features) without class and register tokens.

        The embedding has what the backbone uses of these.
        """
        if isinstance(features, Tensor) and features.ndim == 4:  # a map
            channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
            return (features if channels_last else features.permute(0, 2, 3, 1)).flatten(1, 2)
        if isinstance(features, Tensor) and features.ndim == 3:
            return features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
        name = self.pretrained_cfg.get("architecture", type(self.backbone).__name__)
        raise TaggerError(
            f"{name} gives no single map of features for a query head. Use the linear head, or "
            "another backbone."
        )

    def head_config(self) -> dict[str, Any]:
        """Return the constructor's arguments that rebuild the head."""
        queries, width = self.decoder.queries.shape
        return {"tags": self.num_classes, "queries": queries, "width": width}

    def get_classifier(self) -> QueryHead:
        return self.decoder

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return parameters without weight decay: the backbone's own, and the queries."""
        names: Callable[[], set[str]] = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in names()} | {"decoder.queries"}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], Hashable]:
        """Return the layer of each parameter, for timm's layer decay: the head's is the last."""
        matcher = getattr(self.backbone, "group_matcher", None)
        names = [name.removeprefix("backbone.") for name, _ in self.named_parameters()]
        # No pattern of a backbone matches names of the head: timm puts those into the last layer.
        layers = group_with_matcher(
            ((name, None) for name in names),
            matcher(coarse=coarse) if matcher else lambda name: name.startswith("decoder."),
            reverse=True,
        )
        return lambda name: layers[name.removeprefix("backbone.")]
