"""The pixel codec is the identity."""

import pytest
import torch

from libs import codecs


def test_pixels_are_their_own_latents():
    codec = codecs.get(name="pixels", channels=1)
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    assert codec.encode(x) is x and codec.decode(x) is x
    assert (codec.channels, codec.downsample, codec.scale_factor) == (1, 1, 1.0)
    assert not list(codec.parameters()) and not codec.state_dict()


def test_sampled_moments_are_the_image():
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    mean, logvar = codecs.get(name="pixels").moments(x).chunk(2, dim=1)
    assert torch.equal(mean, x)
    z = mean + torch.exp(0.5 * logvar) * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(z, x, atol=2e-6)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="did you mean 'pixels'"):
        codecs.get(name="pixel")
    with pytest.raises(ValueError, match="channels=-1"):
        codecs.get(name="pixels", channels=-1)
    codec = codecs.get(name="pixels", channels=3)
    for call in (codec.encode, codec.moments, codec.decode):
        with pytest.raises(ValueError, match=r"\(N, 3, H, W\), got \(2, 1, 8, 8\)"):
            call(torch.zeros(2, 1, 8, 8))
