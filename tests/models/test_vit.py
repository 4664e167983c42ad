"""The Vision Transformer against PyTorch's own encoder layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fer_lightning.models.vit import Block, ViT


def test_block_equals_pytorchs_encoder_layer() -> None:
    torch.manual_seed(0)
    ours = Block(24, 3, 4.0, 0.0)
    theirs = nn.TransformerEncoderLayer(24, 3, 96, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    attention = theirs.self_attn
    attention.in_proj_weight.data, attention.in_proj_bias.data = ours.attn.qkv.weight.data, torch.randn(72)
    ours.attn.qkv.bias.data = attention.in_proj_bias.data
    for ours_part, theirs_part in (
        (ours.attn.proj, attention.out_proj),
        (ours.mlp.fc1, theirs.linear1),
        (ours.mlp.fc2, theirs.linear2),
        (ours.norm1, theirs.norm1),
        (ours.norm2, theirs.norm2),
    ):
        theirs_part.load_state_dict(ours_part.state_dict())
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_position_embedding_follows_the_size_of_the_images() -> None:
    torch.manual_seed(0)
    network = ViT(size=48, patch=8, width=24, depth=2, heads=3).eval()
    assert network(torch.rand(2, 1, 48, 48)).shape == (2, 24)
    assert network(torch.rand(2, 1, 40, 56)).shape == (2, 24)
    constant = network._positions(3, 9)
    network.pos_embed.data[:, 1:] = 1.5  # interpolating a constant gives the constant
    torch.testing.assert_close(network._positions(3, 9)[:, 1:], torch.full((1, 27, 24), 1.5))
    assert constant.shape == (1, 28, 24)
    with pytest.raises(ValueError, match="patch=8 does not divide images of 44 pixels"):
        network(torch.rand(1, 1, 44, 48))


def test_layers_are_counted_from_the_input() -> None:
    network = ViT(width=24, depth=3, heads=3)
    names = ["patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.bias", "blocks.2.mlp.fc1.weight", "norm.bias"]
    assert [network.layer_of(name) for name in names] == [0, 0, 1, 3, 3]


@pytest.mark.parametrize("sizes", [{"patch": 7}, {"heads": 5}, {"depth": 0}, {"drop_path": 1.0}])
def test_impossible_sizes_are_reported(sizes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(sizes))):
        ViT(**sizes)  # type: ignore[arg-type]


def test_stochastic_depth_keeps_the_mean_and_is_off_in_evaluation() -> None:
    from fer_lightning.models.depth import DropPath, drop_rates

    torch.manual_seed(0)
    layer, branch = DropPath(0.25), torch.ones(4000, 2)
    out = layer(branch)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (out[:, 0] == out[:, 1]).all()
    assert out.mean() == pytest.approx(1, abs=0.05)
    assert torch.equal(layer.eval()(branch), branch)
    assert drop_rates(0.2, 3) == pytest.approx([0, 0.1, 0.2])
