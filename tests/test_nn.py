"""Layers against their formulas."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F

from libs import nn


@pytest.fixture
def restore_backend():
    former = nn.use_backend("auto")
    yield
    nn.use_backend(former)


def by_hand(q, k, v, scale):
    """Attention one query at a time in float64."""
    out = torch.zeros_like(q, dtype=torch.float64)
    for n, h, i in torch.cartesian_prod(*(torch.arange(size) for size in q.shape[:3])):
        weights = torch.exp(scale * (k[n, h].double() @ q[n, h, i].double()))
        out[n, h, i] = (weights / weights.sum()) @ v[n, h].double()
    return out


@pytest.mark.parametrize("backend", ["auto", "sdpa", "math"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_its_formula(backend, scale, restore_backend):
    nn.use_backend(backend)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, generator=g) for length in (4, 6, 6))
    expected = by_hand(q, k, v, 8 ** -0.5 if scale is None else scale)
    assert torch.allclose(nn.attention(q, k, v, scale=scale).double(), expected, atol=1e-6)
    low = nn.attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), scale=scale)
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.double(), expected, atol=0.03)


def test_many_tokens_in_bfloat16_head_by_head(restore_backend):
    nn.use_backend("auto")
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, generator=g) for length in (5, 600, 600))
    low = nn.attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert low.shape == (2, 3, 5, 8) and torch.allclose(low.float(), nn.attention(q, k, v), atol=0.03)


def test_attention_module_packs_q_k_v_outermost():
    torch.manual_seed(0)
    layer = nn.Attention(8, 2, qkv_bias=True, scale=0.4)
    x = torch.randn(3, 5, 8)
    q, k, v = (F.linear(x, w, b).view(3, 5, 2, 4).transpose(1, 2)
               for w, b in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)))
    expected = layer.proj(by_hand(q, k, v, 0.4).float().transpose(1, 2).reshape(3, 5, 8))
    assert torch.allclose(layer(x), expected, atol=1e-6)
    assert set(layer.state_dict()) == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    assert nn.Attention(8, 2, scale=0.0).scale is None


def test_backend_names(restore_backend, monkeypatch):
    assert nn.use_backend("math") == "auto"
    assert nn.use_backend("sdpa") == "math"
    with pytest.raises(ValueError, match="'xformer'.*did you mean 'xformers'"):
        nn.use_backend("xformer")
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(ModuleNotFoundError, match="pip install xformers"):
        nn.use_backend("xformers")
    assert nn.use_backend("auto") == "sdpa"


def test_xformers_receives_tokens_before_heads(restore_backend, monkeypatch):
    def memory_efficient_attention(q, k, v, scale):
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)

    module = type(sys)("xformers")
    module.ops = type(sys)("xformers.ops")
    module.ops.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", module)
    monkeypatch.setitem(sys.modules, "xformers.ops", module.ops)
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    expected = nn.attention(q, k, v)
    nn.use_backend("xformers")
    assert torch.allclose(nn.attention(q, k, v), expected, atol=1e-6)


def test_heads_must_divide():
    for heads in (3, 0):
        with pytest.raises(ValueError, match=f"num_heads={heads}.*8"):
            nn.Attention(8, heads)


def test_timestep_embedding():
    expected = [[.540302, .995004, .99995, 1, .841471, .099833, .01, .001],
                [.99965, .807455, -.84447, .541144, -.026461, -.589929, -.535603, .84093]]
    assert torch.allclose(nn.timestep_embedding(torch.tensor([1, 999]), 8), torch.tensor(expected), atol=2e-6)
    t = 12.5
    angles = [t * 100 ** (-i / 3) for i in range(3)]
    odd = [math.cos(a) for a in angles] + [math.sin(a) for a in angles] + [0]
    found = nn.timestep_embedding(torch.tensor([t]), 7, max_period=100)
    assert torch.allclose(found, torch.tensor([odd]), atol=1e-5)
    with pytest.raises(ValueError, match=r"\(1, 1\)"):
        nn.timestep_embedding(torch.ones(1, 1), 8)


def test_timestep_embedding_in_low_precision_and_after_inference():
    t = torch.tensor([998.0, 999.0])
    assert nn.timestep_embedding(t.bfloat16(), 8).dtype == torch.float32
    with torch.inference_mode():
        nn.timestep_embedding(torch.ones(1), 10)
    t = torch.ones(1, requires_grad=True)
    nn.timestep_embedding(t, 10).sum().backward()
    assert t.grad.isfinite().all()


def test_frequencies_are_computed_once():
    from libs.nn import embedding
    nn.timestep_embedding(torch.ones(2), 26)
    before = embedding._kept_frequencies.cache_info().misses
    nn.timestep_embedding(torch.ones(3), 26)
    assert embedding._kept_frequencies.cache_info().misses == before


def test_mlp_gelu():
    x = torch.linspace(-3, 3, 7)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)
    for gelu, expected in (("none", 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))),
                           ("tanh", 0.5 * x * (1 + torch.tanh(inner)))):
        mlp = nn.Mlp(1, 1, gelu=gelu)
        with torch.no_grad():
            for p in mlp.parameters():
                p.fill_(float(p.ndim == 2))
            assert torch.allclose(mlp(x[:, None])[:, 0], expected, atol=1e-6)
    with pytest.raises(ValueError, match="gelu='exact'"):
        nn.Mlp(1, 1, gelu="exact")


def test_patches_and_back():
    """A patch embedding that copies, channels fastest, is undone by `unpatchify`."""
    embed = nn.PatchEmbed(2, 3, 12)
    with torch.no_grad():
        embed.proj.bias.zero_()
        weight = torch.zeros(12, 3, 2, 2)
        for row, column, channel in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)):
            weight[(row * 2 + column) * 3 + channel, channel, row, column] = 1
        embed.proj.weight.copy_(weight)
    x = torch.randn(2, 3, 8, 8)
    tokens = embed(x)
    assert tokens.shape == (2, 16, 12)
    # the second token lies to the right of the first
    assert torch.allclose(tokens[:, 1].view(2, 2, 2, 3), x[:, :, :2, 2:4].permute(0, 2, 3, 1), atol=1e-6)
    assert torch.allclose(nn.unpatchify(tokens, 3), x, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 15, 12), (1, 16, 13), (1, 16, 6)])
def test_unpatchify_wants_squares(shape):
    with pytest.raises(ValueError, match=f"{shape[1]} tokens of width {shape[2]}"):
        nn.unpatchify(torch.zeros(shape), 3)


def test_init_transformer():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(200, 200), torch.nn.LayerNorm(200),
                                 torch.nn.Linear(200, 2, bias=False))
    layers[1].weight.data.fill_(3)
    nn.init_transformer_(layers, std=0.05)
    assert layers[0].weight.std().item() == pytest.approx(0.05, rel=0.03)
    assert not layers[0].bias.any() and not layers[1].bias.any()
    assert torch.equal(layers[1].weight, torch.ones(200))
