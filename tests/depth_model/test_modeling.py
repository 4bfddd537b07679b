"""Sizes, versions and the random start of the network."""

import pytest
import torch
import torch.nn.functional as F

from depth_model.errors import InputError
from depth_model.modeling import PRESETS, build_model, initialise_encoder, initialise_patch_embedding, model_config


@pytest.mark.parametrize("preset", PRESETS)
def test_configs_describe_both_versions(preset):
    layers = PRESETS[preset].layers
    last_four = list(range(layers - 3, layers + 1))
    assert list(model_config(preset, "v1").backbone_config.out_indices) == last_four
    spread = list(model_config(preset, "v2").backbone_config.out_indices)
    assert spread != last_four and spread[-1] == layers


@pytest.mark.parametrize("arguments", [("huge",), ("tiny", "v3"), ("tiny", "v2", "metric"), ("tiny", "v2", "log")])
def test_wrong_config_is_refused(arguments):
    with pytest.raises(InputError):
        model_config(*arguments)


@pytest.mark.parametrize("seed", range(3))
def test_new_model_is_alive_and_learns(seed):
    torch.manual_seed(seed)
    model = build_model("tiny")
    pixels = F.interpolate(torch.randn(2, 3, 6, 6), size=(56, 56), mode="bilinear")
    target = 1 + pixels[:, 0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses = []
    for _ in range(12):
        prediction = model(pixels).predicted_depth
        loss = (prediction - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((loss.item(), (prediction > 0).float().mean().item()))
    assert losses[0][1] > 0.9, "the final ReLU starts dead"
    assert losses[-1][0] < 0.8 * losses[0][0]


def test_metric_model_stays_below_its_range():
    torch.manual_seed(0)
    depth = build_model("tiny", depth_estimation_type="metric", max_depth=20).eval()(torch.randn(1, 3, 56, 70))
    assert depth.predicted_depth.shape == (1, 56, 70)
    assert 0 < depth.predicted_depth.min() and depth.predicted_depth.max() < 20


def test_mimetic_start_looks_at_near_tokens_first():
    torch.manual_seed(0)
    model = build_model("tiny")
    initialise_encoder(model)
    model.set_attn_implementation("eager")
    pixels = torch.zeros(1, 3, 112, 112)
    attention = model.backbone(pixels, output_attentions=True).attentions[0][0].mean(0)[1:, 1:]
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    place = torch.stack([rows.flatten(), columns.flatten()], 1).float()
    distance = torch.cdist(place, place)
    near, far = attention[distance < 1.5].mean(), attention[distance > 4].mean()
    assert near > 1.5 * far


def test_patch_embedding_starts_as_principal_components():
    torch.manual_seed(0)
    model = build_model("tiny")
    smooth = [F.interpolate(torch.randn(1, 3, 20, 24), size=(140, 168), mode="bicubic")[0] for _ in range(12)]
    initialise_patch_embedding(model, smooth)
    layer = model.backbone.embeddings.patch_embeddings.projection
    tokens = torch.cat([layer(image).flatten(1).T for image in smooth]).detach()
    assert 0.6 < tokens.square().mean().sqrt() < 0.8
    # The last components of images this smooth are nothing but rounding.
    tokens = tokens[:, :48]
    assert tokens.mean(0).abs().max() < 1e-3
    covariance = tokens.T @ tokens / len(tokens)
    spread = covariance.diag().sqrt()
    assert (covariance / spread.outer(spread) - torch.eye(len(spread))).abs().max() < 0.05
    assert (spread[:-1] >= spread[1:] - 1e-4).all()


def test_patch_embedding_of_few_or_flat_images_stays_sane():
    torch.manual_seed(0)
    wide = build_model("base")
    layer = wide.backbone.embeddings.patch_embeddings.projection
    before = layer.weight.detach().clone()
    initialise_patch_embedding(wide, [torch.zeros(3, 28, 28)])
    assert torch.equal(layer.weight, before)
    initialise_patch_embedding(wide, [torch.randn(3, 280, 280) for _ in range(4)])
    assert torch.equal(layer.weight[588:], before[588:])
    assert torch.linalg.matrix_rank(layer.weight[:588].flatten(1)) == 588
    few = build_model("tiny")
    initialise_patch_embedding(few, [torch.randn(3, 28, 28)])
    tokens = few.backbone.embeddings.patch_embeddings.projection(torch.randn(1, 3, 280, 280))
    assert tokens.isfinite().all() and tokens.square().mean() < 1
