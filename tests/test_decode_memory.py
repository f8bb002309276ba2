"""How many images an autoencoder takes at once: bounded by pixels, halved where memory does not suffice, the
same images always."""

import pytest
import torch

from libs import codecs
from libs.codecs import latent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from diffusers import AutoencoderKL, AutoencoderTiny
    root = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
                  up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=16).save_pretrained(root / "kl")
    AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
                    num_decoder_blocks=(1, 1)).save_pretrained(root / "tiny")
    return root


@pytest.fixture(params=["kl", "tiny"])
def codec(request, folder):
    return codecs.get(request.param, path=str(folder / request.param))


def watched(monkeypatch, codec, limit=10 ** 9):
    """The sizes of the parts that `_decode` and `_encode` are given; more rows than `limit` are out of
    memory."""
    sizes = []
    for name in ("_decode", "_encode"):
        whole = getattr(codec, name)

        def called(part, whole=whole):
            sizes.append(len(part))
            if len(part) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return whole(part)
        monkeypatch.setattr(codec, name, called)
    return sizes


def test_two_megapixels_at_once():
    assert [latent._images_at_once(side, side) for side in (32, 256, 512, 1024, 2048)] == [2048, 32, 8, 2, 1]


def test_decoding_and_encoding_are_bounded_by_pixels(codec, monkeypatch):
    z, x = torch.randn(7, 4, 8, 8), torch.rand(7, 3, 16, 16) * 2 - 1
    image, moments = codec.decode(z), codec.moments(x)
    sizes = watched(monkeypatch, codec)
    monkeypatch.setattr(latent, "PIXELS_AT_ONCE", 3 * 16 * 16 + 5)
    assert torch.allclose(codec.decode(z), image, atol=1e-5) and sizes == [3, 3, 1]
    sizes.clear()
    assert torch.allclose(codec.moments(x), moments, atol=1e-5) and sizes == [3, 3, 1]
    sizes.clear()
    codec.decode_batch = 5  # given: it holds
    assert torch.allclose(codec.decode(z), image, atol=1e-5) and sizes == [5, 2]


def test_out_of_memory_halves_and_tries_again(codec, monkeypatch, caplog):
    z, x = torch.randn(7, 4, 8, 8), torch.rand(7, 3, 16, 16) * 2 - 1
    image, moments = codec.decode(z), codec.moments(x)
    sizes = watched(monkeypatch, codec, limit=2)
    assert torch.allclose(codec.decode(z), image, atol=1e-5) and sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert "out of memory with 7 images at once: the autoencoder takes 3" in caplog.text
    sizes.clear()
    assert torch.allclose(codec.moments(x), moments, atol=1e-5) and sizes[:2] == [7, 3]
    watched(monkeypatch, codec, limit=0)
    with pytest.raises(torch.OutOfMemoryError):
        codec.decode(z)


def test_gradients_pass_through_parts(codec, monkeypatch):
    monkeypatch.setattr(latent, "PIXELS_AT_ONCE", 2 * 16 * 16)
    z = torch.randn(5, 4, 8, 8, requires_grad=True)
    codec.decode(z).square().sum().backward()
    assert z.grad.shape == z.shape and z.grad.abs().flatten(1).sum(1).min() > 0

