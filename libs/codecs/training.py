"""What trains a KL autoencoder: network and discriminator in one module, the parts of the loss, and how good it is."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from libs import files
from libs.codecs import kl
from libs.codecs.base import Codec

VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"
_VGG16_LAYERS = (3, 8, 15, 22)  # relu1_2, relu2_2, relu3_3, relu4_3
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(name: str = "kl", *, path: str = "", in_channels: int = 3, latent_channels: int = 4,
          block_out_channels: tuple[int, ...] = (128, 256, 512, 512), layers_per_block: int = 2, norm_num_groups: int = 32,
          mid_block_add_attention: bool = True) -> nn.Module:
    """diffusers' AutoencoderKL to be trained: a new one, or with `path` that one, whose architecture is its own.

    block_out_channels: channels at each level; every level but the first halves the image.
    """
    if name != "kl":
        raise ValueError(f"nnet.name={name!r}: train_autoencoder.py trains 'kl'")
    if path:
        return kl.load(path).requires_grad_(True)
    from diffusers import AutoencoderKL
    levels = len(block_out_channels)
    return AutoencoderKL(
        in_channels=in_channels, out_channels=in_channels, latent_channels=latent_channels,
        block_out_channels=tuple(block_out_channels), layers_per_block=layers_per_block, norm_num_groups=norm_num_groups,
        mid_block_add_attention=mid_block_add_attention, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels)


class Trainee(nn.Module):
    """An autoencoder, and a discriminator beside it where one is asked for; every parameter is used at every step.

    So one optimizer, one backward pass and one average serve both. The two do not disturb each other: reconstructions
    reach the discriminator's own term detached, and the autoencoder is judged by detached weights.

    Args:
        autoencoder: diffusers' AutoencoderKL.
        discriminator: `PatchDiscriminator`, or None.
    """

    def __init__(self, autoencoder: nn.Module, discriminator: nn.Module | None = None):
        super().__init__()
        self.autoencoder, self.discriminator = autoencoder, discriminator

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) in [-1, 1] -> {'image', 'mean', 'logvar'}, and 'judged', 'real', 'fake' of a discriminator.

        'image' is decoded from a sample in training, from the mean otherwise. 'judged' are the discriminator's logits of
        the reconstruction, with gradients for the autoencoder alone; 'real' and 'fake' those for the discriminator alone.
        """
        posterior = self.autoencoder.encode(x, return_dict=False)[0]
        z = posterior.sample() if self.training else posterior.mode()
        image = self.autoencoder.decode(z, return_dict=False)[0].float()
        found = {"image": image, "mean": posterior.mean.float(), "logvar": posterior.logvar.float()}
        if self.discriminator is not None:
            fixed = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
            found["judged"] = functional_call(self.discriminator, fixed, (image,)).float()
            found["real"] = self.discriminator(x).float()
            found["fake"] = self.discriminator(image.detach()).float()
        return found


class PatchDiscriminator(nn.Sequential):
    """Real or reconstructed, for overlapping patches of an image (Isola et al., CVPR 2017).

    Images (N, C, H, W) of at least 3 * 2^levels pixels a side -> logits (N, 1, h, w). Group norm in place of the usual
    batch norm: it has no buffers, and an image is judged by itself.

    channels: of the first layer, a multiple of 8. levels: halvings of the image; channels double at each, up to 8 times.
    """

    def __init__(self, in_channels: int = 3, channels: int = 64, levels: int = 3):
        if channels % 8:
            raise ValueError(f"adversarial_channels={channels}: expected a multiple of 8")
        widths = [channels * min(2 ** level, 8) for level in range(levels + 1)]
        layers = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, levels + 1):
            layers += [nn.Conv2d(widths[level - 1], widths[level], 4, stride=2 if level < levels else 1, padding=1),
                       nn.GroupNorm(8, widths[level]), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.smallest = 3 * 2 ** levels  # the last two layers each take a pixel

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < self.smallest:
            raise ValueError(f"a discriminator needs images of at least {self.smallest} pixels a side, not "
                             f"{min(x.shape[2:])}: raise the resolution, or set train.adversarial_weight=0")
        return super().forward(x)


def average(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of values (N, ...), where image n counts weights[n] times, weights (N,) not being normalised; None: each once."""
    return values.mean() if weights is None else (values.flatten(1).mean(1) * weights).mean()


def hinge(real: Tensor, fake: Tensor, weights: Tensor | None = None) -> Tensor:
    """The discriminator's loss: 0 once real logits are above 1 and those of reconstructions below -1; `average` has weights."""
    return 0.5 * (average(F.relu(1.0 - real), weights) + average(F.relu(1.0 + fake), weights))


def divergence(mean: Tensor, logvar: Tensor, weights: Tensor | None = None) -> Tensor:
    """KL divergence of the posterior from a standard normal, in nats, averaged over every number of every latent.

    Latent diffusion's weight of 1e-6 belongs to sums over an image: for it take 1e-6 * latent size / image size here.
    weights: see `average`.
    """
    return 0.5 * average(mean.square() + logvar.exp() - 1.0 - logvar, weights)


class Perceptual(nn.Module):
    """Distance of two images in VGG-16's features (Johnson et al., ECCV 2016), vectors of unit length as in LPIPS.

    weights: {name: Tensor} of torchvision's vgg16, whole or its `features` alone.
    """

    def __init__(self, weights: dict[str, Tensor]):
        from torchvision.models import vgg16
        super().__init__()
        self.features = vgg16(weights=None).features[:_VGG16_LAYERS[-1] + 1]
        wanted = self.features.state_dict()
        self.features.load_state_dict({name: weights.get(f"features.{name}", weights.get(name)) for name in wanted})
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        self.requires_grad_(False).eval()
        mean, std = (torch.tensor(each)[:, None, None] for each in _IMAGENET)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) in [-1, 1], C 1 or 3 -> scalar, the mean over images, layers and places; 0 if equal.

        weights: see `average`.
        """
        a, b = (((each.expand(-1, 3, -1, -1) + 1.0) / 2.0 - self.mean) / self.std for each in (x, y))
        total = 0.0
        for number, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if number in _VGG16_LAYERS:
                total = total + average((F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1), weights)
        return total / len(_VGG16_LAYERS)


def perceptual(path: str = "", *, channels: int = 3) -> Perceptual | None:
    """The perceptual loss for images of `channels`, or None with one warning where VGG-16's weights are not at hand.

    Args:
        path: a .pth or .safetensors file of torchvision's vgg16; '' looks into torch hub's cache. Nothing is fetched.

    Raises:
        OSError, ValueError: the file given is missing or holds something else.
    """
    file = Path(path).expanduser() if path else Path(torch.hub.get_dir()) / "checkpoints" / VGG16.rsplit("/", 1)[1]
    if channels not in (1, 3):
        raise ValueError(f"a perceptual loss needs images of 1 or 3 channels, not {channels}: set perceptual_weight=0")
    if not file.is_file():
        if path:
            raise FileNotFoundError(f"train.perceptual_path: no file {path}; download {VGG16}")
        logging.warning("training without perceptual loss, images will be softer: no VGG-16 weights at %s. Download %s to "
                        "there, or give train.perceptual_path", file, VGG16)
        return None
    try:
        return Perceptual(files.read_safetensors(file) if file.suffix == ".safetensors" else files.read_torch(file))
    except Exception as error:
        raise ValueError(f"{file} does not hold weights of torchvision's vgg16: {str(error)[:300]}") from error


@torch.no_grad()
def fidelity(codec: Codec, x: Tensor) -> Tensor:
    """How well images (N, C, H, W) in [-1, 1] come back from the mean of their latents: (N, 2), mean |error| and PSNR in dB.

    The error is in units of [-1, 1]; PSNR is that of 8-bit images, whose peak is the range of 2.
    """
    mean = codec.moments(x).chunk(2, dim=1)[0]
    error = codec.decode(codec.sample(mean)).clamp(-1.0, 1.0) - x
    mse = error.square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
    return torch.stack([error.abs().mean(dim=(1, 2, 3)), 10.0 * torch.log10(4.0 / mse)], dim=1)
