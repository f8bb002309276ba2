"""What every codec offers; the pixel codec is the identity; the tiny autoencoder brings its own scale."""

import pytest
import torch

from libs import codecs


@pytest.fixture(scope="module")
def taesd(tmp_path_factory):
    """A save_pretrained folder of an untrained AutoencoderTiny, four times smaller in each direction."""
    from diffusers import AutoencoderTiny
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("taesd")
    AutoencoderTiny(encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
                    num_decoder_blocks=(1, 1, 1)).save_pretrained(folder)
    return folder


def test_pixels_are_their_own_latents():
    codec = codecs.get(name="pixels", channels=1)
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    assert codec.encode(x) is x and codec.decode(x) is x and torch.equal(codec.sample(x.half()), x.half().float())
    assert (codec.channels, codec.downsample, codec.scale_factor, codec.deterministic) == (1, 1, 1.0, True)
    assert codec.latent_shape((1, 8, 8)) == codec.image_shape((1, 8, 8)) == (1, 8, 8)
    assert not list(codec.parameters()) and not codec.state_dict() and int(codec.fingerprint, 16)


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


def test_latents_come_from_stored_moments_or_from_the_images():
    codec = codecs.get(name="pixels")
    codec.scale_factor = 0.5
    mean, std = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    assert torch.equal(codecs.latents(codec, {"image": mean}), mean)
    assert torch.equal(codecs.latents(codec, {"mean": mean.half(), "image": mean + 1}), 0.5 * mean.half().float())
    torch.manual_seed(1)
    z = codecs.latents(codec, {"mean": mean, "std": std})
    torch.manual_seed(1)
    assert torch.allclose(z, 0.5 * (mean + std * torch.randn(mean.shape)))
    drawn = [codec.sample(mean, std, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_tiny_autoencoder(taesd):
    """Its encoder's output is the latent: nothing is scaled a second time."""
    codec = codecs.get(name="tiny", path=str(taesd))
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert (codec.channels, codec.downsample, codec.scale_factor, codec.deterministic) == (4, 4, 1.0, True)
    assert codec.latent_shape((3, 16, 16)) == (4, 4, 4) and codec.image_shape((4, 4, 4)) == (3, 16, 16)
    z = codec.encode(x)
    assert torch.equal(z, codec.encode(x)) and torch.equal(z, codec.net.encoder(x))
    mean, logvar = codec.moments(x).chunk(2, dim=1)
    assert torch.equal(mean, z) and (logvar == -30).all()
    assert torch.equal(codec.decode(z), codec.net.decoder(z))
    assert not any(p.requires_grad for p in codec.parameters()) and not codec.train().training

    doubled = codecs.get(name="tiny", path=str(taesd), scale_factor=2.0)
    assert torch.equal(doubled.encode(x), 2 * z) and torch.allclose(doubled.decode(2 * z), codec.decode(z), atol=1e-6)
    assert doubled.fingerprint == codec.fingerprint
    with pytest.raises(ValueError, match="holds AutoencoderTiny, not AutoencoderKL: use codec.name=tiny"):
        codecs.get(name="kl", path=str(taesd))
