"""The query head learns, is saved and exported, and trains like timm's linear head."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from tagger.core import calibration, files, thresholds, vocabulary
from tagger.core.errors import TaggerError
from tagger.core.thresholds import Threshold
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.export import compatibility, onnx_graph, package
from tagger.images import decode
from tagger.images.dataset import Split
from tagger.models import backbone, heads, load_tagger
from tagger.models.heads import QueryHead, QueryTagger
from tagger.models.runtimes import Device
from tagger.params import Params, Preset

CPU = Device("cpu", threads=1)
LAPTOP = ["mobilenetv4", "convnext", "vit", "swin", "eva02"]
SWIN = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 4}
FAMILIES: dict[str, tuple[int, dict[str, Any]]] = {  # pixels and arguments
    "test_efficientnet": (32, {}),
    "test_convnext": (32, {}),
    "test_vit": (32, {}),
    "test_vit3": (32, {}),  # registers, and pooling by attention
    "swinv2_tiny_window8_256": (64, SWIN),
    "eva02_tiny_patch14_224": (28, {"depth": 3}),
    "mobilenetv4_conv_small": (64, {}),
    "pit_ti_224": (64, {}),  # a class token alone, and no group_matcher
}


def family_preset(preset: Preset, name: str) -> Preset:
    size, arguments = FAMILIES[name]
    changed = {"backbone": name, "image_size": size, "model_args": arguments}
    return preset.model_copy(update=changed)


def build_query_tagger(preset: Preset, tags: int) -> QueryTagger:
    torch.manual_seed(0)
    model = backbone.build_model(preset, tags, "query")
    assert isinstance(model, QueryTagger)
    return model


def random_pixels(size: int, images: int = 2) -> Tensor:
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))


def head_of(tags: int, queries: int = 100) -> QueryHead:
    torch.manual_seed(0)
    return QueryHead(features=8, pooled=12, tags=tags, queries=min(tags, queries), width=64)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_of_every_family_learns(preset: Preset, name: str) -> None:
    changed = family_preset(preset, name)
    model = build_query_tagger(changed, 7).train()
    for weights in model.parameters():  # some begin as zero, and let nothing through
        weights.data += 0.02 * torch.randn_like(weights)
    logits = model(random_pixels(changed.image_size))
    assert logits.shape == (2, 7)
    nn.functional.binary_cross_entropy_with_logits(logits, torch.eye(2, 7)).backward()  # type: ignore[no-untyped-call]
    unchanged = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unchanged


@pytest.mark.parametrize("tags", [1, 7, 100, 101, 136, 250, 12_000])
def test_tags_are_split_evenly_among_queries_in_runs(tags: int) -> None:
    head = head_of(tags)
    assert head(torch.randn(3, 5, 8), torch.randn(3, 12)).shape == (3, tags)
    sizes = np.bincount(head.query_of_tag, minlength=len(head.queries))
    assert head.query_of_tag.tolist() == sorted(head.query_of_tag.tolist())
    assert sizes.min() >= 1
    assert np.ptp(sizes) <= 1


def test_a_logit_depends_on_its_own_row_and_query_alone() -> None:
    head = head_of(tags=7, queries=3)
    logits = head(torch.randn(2, 5, 8), torch.randn(2, 12))
    for tag in range(7):
        gradients = torch.autograd.grad(
            logits[:, tag].sum(), [head.weight, head.bias, head.queries], retain_graph=True
        )
        moved = [gradient.reshape(len(gradient), -1).any(dim=1) for gradient in gradients]
        assert [rows.nonzero().flatten().tolist() for rows in moved] == [
            [tag],
            [tag],
            [tag * 3 // 7],
        ]


@pytest.mark.parametrize("tags", [5, 100, 101, 300])
def test_per_tag_entries_have_a_row_for_each_tag(tags: int) -> None:
    head = head_of(tags)
    rows = {name: len(weights) for name, weights in head.state_dict().items()}
    assert {rows[name] for name in head.per_tag} == {tags}
    per_tag_entries = {name for name, count in rows.items() if count == tags}
    assert per_tag_entries - {"query_of_tag"} == set(head.per_tag) - {"query_of_tag"}


@pytest.mark.parametrize("order", [[3, 0, 5, 1, 4, 2], [4, 1, 3, 0], [5, 5, 4, 5, 5, 5, 0, 1]])
def test_rows_moved_to_another_vocabulary_keep_their_logits(order: list[int]) -> None:
    head, other = head_of(6, queries=3), head_of(len(order), queries=3)
    state = head.state_dict()
    moved = {name: rows[order] if name in head.per_tag else rows for name, rows in state.items()}
    other.load_state_dict(moved)
    seen = torch.randn(2, 5, 8), torch.randn(2, 12)
    assert torch.allclose(other(*seen), head(*seen)[:, order], atol=1e-6)


def test_tags_with_a_query_each_keep_it_when_moved() -> None:
    head, other = head_of(6), head_of(4)
    order = [3, 0, 5, 1]
    state = head.state_dict() | {"query_of_tag": torch.arange(4)}
    moved = {name: rows[order] if name in head.per_tag else rows for name, rows in state.items()}
    other.load_state_dict(moved)
    seen = torch.randn(2, 5, 8), torch.randn(2, 12)
    assert torch.allclose(other(*seen), head(*seen)[:, order], atol=1e-6)


@pytest.mark.parametrize("name", LAPTOP)
@pytest.mark.parametrize("head", ["linear", "query"])
def test_logits_and_embeddings_are_those_of_model_and_backbone(
    default_params: Params, name: str, head: heads.Head
) -> None:
    preset = default_params.models[name]
    model: Any = backbone.build_model(preset, 7, head).eval()
    pixels = random_pixels(preset.image_size)
    body = model if head == "linear" else model.backbone
    with torch.inference_mode():
        logits, embedding = heads.logits_and_embeddings(model, pixels)
        assert logits == pytest.approx(model(pixels), abs=1e-6)
        pooled = body.forward_head(body.forward_features(pixels), pre_logits=True)
    assert torch.equal(embedding, pooled)
    assert embedding.shape == (2, body.head_hidden_size)


def test_class_and_register_tokens_are_dropped(preset: Preset) -> None:
    model = build_query_tagger(family_preset(preset, "test_vit"), 5).eval()
    features = model.backbone.forward_features(random_pixels(32))
    tokens = model._tokens(features)
    assert tokens.shape[1] == model.backbone.patch_embed.num_patches
    assert torch.equal(tokens[:, -1], features[:, -1])


def test_channels_first_and_last_give_the_same_tokens(preset: Preset) -> None:
    swin, convnext = (
        build_query_tagger(family_preset(preset, name), 5).eval()
        for name in ("swinv2_tiny_window8_256", "test_convnext")
    )
    features = torch.randn(2, 3, 4, 6)  # (batch, channels, height, width)
    tokens = convnext._tokens(features)
    assert torch.equal(tokens, swin._tokens(features.permute(0, 2, 3, 1)))
    assert torch.equal(tokens[:, 7], features[:, :, 1, 1])


def test_a_backbone_without_a_single_map_is_refused_in_one_line(preset: Preset) -> None:
    changed = preset.model_copy(update={"backbone": "coat_tiny", "image_size": 224})
    with torch.device("meta"):
        model = build_query_tagger(changed, 5)
        with pytest.raises(TaggerError, match=r"\Acoat_tiny gives no [^\n]*linear head[^\n]*\Z"):
            model(torch.empty(1, 3, 224, 224))


def squares(split: Split, size: int) -> Tensor:
    images = [decode.open_rgb(location).resize((size, size)) for location in split.locations]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return pixels.permute(0, 3, 1, 2) / 127.5 - 1


def trained(preset: Preset, split: Split, steps: int) -> tuple[QueryTagger, Tensor]:
    """Return a model after some steps on all images, and the logits of the last step."""
    model = build_query_tagger(preset, split.labels.shape[1]).train()
    pixels = squares(split, preset.image_size)
    targets = torch.from_numpy(split.labels.toarray()).float()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05)
    for _ in range(steps):
        logits = model(pixels)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits, targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model, logits.detach()


def test_a_query_head_memorises_two_dozen_images(preset: Preset, split: Split) -> None:
    _, logits = trained(preset, split, steps=60)
    truth = split.labels.toarray() > 0
    assert ((logits.numpy() > 0) == truth).mean() > 0.995


@pytest.mark.usefixtures("deterministic")
def test_training_twice_gives_the_same_weights(preset: Preset, split: Split) -> None:
    (head, _), (again, _) = (trained(preset, split, steps=3) for _ in range(2))
    for name, weights in head.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name]), name


def saved(model: nn.Module, preset: Preset, folder: Path) -> Path:
    backbone.save_config(model, backbone.build_preprocess(model, preset), folder)
    backbone.save_weights(model.state_dict(), folder / backbone.WEIGHTS)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_query_tagger_equals_the_loaded_one(
    preset: Preset, tmp_path: Path, name: str
) -> None:
    changed = family_preset(preset, name)
    model = build_query_tagger(changed, 9).eval()
    loaded = backbone.load_model(saved(model, changed, tmp_path / "model"))
    assert isinstance(loaded, QueryTagger)
    assert not loaded.training
    with torch.inference_mode():
        pixels = random_pixels(changed.image_size)
        assert torch.equal(loaded(pixels), model(pixels))


def test_timm_refuses_the_folder_of_a_query_tagger(preset: Preset, tmp_path: Path) -> None:
    folder = saved(build_query_tagger(preset, 9), preset, tmp_path / "model")
    with pytest.raises(RuntimeError, match="Missing key"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


@pytest.mark.parametrize(
    "head", ["query", 3, {}, {"tags": "x"}, {"tags": 8}, {"tags": 9, "queries": 4}, {"tag": 9}]
)
def test_a_damaged_head_config_is_one_line(preset: Preset, tmp_path: Path, head: object) -> None:
    folder = saved(build_query_tagger(preset, 9), preset, tmp_path / "model")
    config = files.read_json(folder / backbone.CONFIG)
    assert config["head"] == {"tags": 9, "queries": 9, "width": 128}
    files.write_json(folder / backbone.CONFIG, config | {"head": head})
    with pytest.raises(TaggerError, match=rf"\A{folder} does not load: [^\n]*\Z"):
        backbone.load_model(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_graph_of_a_query_tagger_equals_torch(
    preset: Preset, tmp_path: Path, name: str
) -> None:
    changed = family_preset(preset, name)
    model = build_query_tagger(changed, 137).eval()
    nn.init.normal_(model.decoder.weight)  # else every probability is near a half
    onnx_graph.write_model(model, tmp_path / "model.onnx", size=changed.image_size, opset=17)
    session = ort.InferenceSession(tmp_path / "model.onnx")
    for images in (1, 5):
        pixels = random_pixels(changed.image_size, images)
        prediction, _, embedding = session.run(None, {"input": pixels.numpy()})
        with torch.inference_mode():
            logits, pooled = heads.logits_and_embeddings(model, pixels)
        assert prediction == pytest.approx(logits.sigmoid().numpy(), abs=1e-5)
        assert embedding == pytest.approx(pooled.numpy(), abs=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_decay_of_the_backbone_is_that_under_a_linear_head(preset: Preset, name: str) -> None:
    changed = family_preset(preset, name)
    model, linear = build_query_tagger(changed, 7), backbone.build_model(changed, 7)
    groups: Any = create_optimizer_v2(model, opt="adamw", lr=1, layer_decay=0.5).param_groups
    scales = {weights: group["lr_scale"] for group in groups for weights in group["params"]}
    assert {scales[weights] for weights in model.decoder.parameters()} == {1}
    assert min(scales.values()) < 0.6
    if hasattr(linear, "group_matcher"):
        matcher: Any = linear.group_matcher
        layers = group_parameters(linear, matcher(), reverse=True)
        ours = group_parameters(model, model.group_matcher(), reverse=True)
        assert max(layers.values()) == max(ours.values())
        for weights in model.backbone.state_dict().keys() & layers.keys():
            assert ours[f"backbone.{weights}"] == layers[weights], weights


def test_queries_biases_norms_and_positions_do_not_decay(preset: Preset) -> None:
    model = build_query_tagger(family_preset(preset, "test_vit"), 7)
    optimizer: Any = create_optimizer_v2(model, opt="adamw", lr=1, weight_decay=0.1)
    names = {weights: name for name, weights in model.named_parameters()}
    fixed = {
        names[weights]
        for group in optimizer.param_groups
        if not group["weight_decay"]
        for weights in group["params"]
    }
    assert {"decoder.queries", "decoder.bias", "decoder.norm.weight", "backbone.pos_embed"} <= fixed
    assert {"decoder.weight", "decoder.from_tokens.weight"}.isdisjoint(fixed)


@pytest.mark.parametrize("name", ["test_vit", "mobilenetv4_conv_small"])
def test_gradient_checkpointing_changes_no_gradient(preset: Preset, name: str) -> None:
    changed = family_preset(preset, name)
    gradients = []
    for enabled in (False, True):
        model = build_query_tagger(changed, 7).train()
        model.set_grad_checkpointing(enabled)
        model(random_pixels(changed.image_size)).square().sum().backward()
        gradients.append([weights.grad for weights in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain is not None
        assert checkpointed is not None
        assert torch.allclose(plain, checkpointed, atol=1e-5)


def test_a_query_tagger_is_built_on_meta_and_loaded_afterwards(preset: Preset) -> None:
    with torch.device("meta"):
        empty = build_query_tagger(preset, 250).eval()
        assert empty(torch.empty(2, 3, 32, 32)).shape == (2, 250)
    full = build_query_tagger(preset, 250).eval()
    empty.to_empty(device="cpu")
    empty.load_state_dict(full.state_dict())
    assert torch.equal(empty(random_pixels(32)), full(random_pixels(32)))


def test_a_query_tagger_computes_in_bfloat16(preset: Preset) -> None:
    model, pixels = build_query_tagger(preset, 137).eval(), random_pixels(32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(pixels)
    assert logits.isfinite().all()
    assert torch.allclose(logits.float(), model(pixels), atol=0.05)


def test_channels_last_does_not_change_logits(preset: Preset) -> None:
    model, pixels = build_query_tagger(preset, 137).eval(), random_pixels(32)
    expected = model(pixels)
    model.to(memory_format=torch.channels_last)
    logits = model(pixels.to(memory_format=torch.channels_last))
    assert torch.allclose(logits, expected, atol=1e-5)


def test_a_query_tagger_compiles_as_one_graph(preset: Preset) -> None:
    model, pixels = build_query_tagger(preset, 137).eval(), random_pixels(32)
    whole: Any = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(whole(pixels), model(pixels), atol=1e-6)


def test_the_export_has_no_files_for_timm_and_all_for_the_other_tools(
    preset: Preset, split: Split, tags: list[Tag], tmp_path: Path
) -> None:
    source, target = tmp_path / "tagger", tmp_path / "export"
    model = build_query_tagger(preset, len(tags))
    nn.init.normal_(model.decoder.weight)
    saved(model, preset, source)
    backbone.build_preprocess(model, preset).write(source / "preprocess.json")
    vocabulary.write(tags, source / "vocabulary.csv")
    fitted = [Threshold(name, "", 0.5, "category") for name in CATEGORIES.values()]
    calibration.write({thresholds.ALL: 1.0}, tmp_path / "calibration.json")
    names = package.ExportTags(tags, np.full(len(tags), 0.5), fitted)
    package.write(target, source, tmp_path / "calibration.json", names, 17)
    assert {path.name for path in target.iterdir()} == {
        "model.onnx",
        "preprocess.json",
        "selected_tags.csv",
        "categories.json",
        "thresholds.csv",
        "calibration.json",
        "wd14",
        "kohya",
    }
    shown = [(location.path, decode.open_rgb(location)) for location in split.locations[:8]]
    gradients = compatibility.check_compatibility(target, shown, load_tagger(source, CPU), 1e-4)
    assert gradients.tools["infer"].largest_difference < 1e-5
    assert "timm" not in gradients.tools
    images = [decode.open_rgb(location) for location in split.locations[:3]]
    ours, theirs = (load_tagger(folder, CPU) for folder in (source, target))
    assert ours.probabilities(images) == pytest.approx(theirs.probabilities(images), abs=1e-5)
