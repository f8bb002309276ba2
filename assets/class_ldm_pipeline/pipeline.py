"""Images of a class, also ones that follow a mask: latent diffusion with class tokens, and a ControlNet where there is one.

    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    images = pipe(class_label="melanoma", num_images=4).images

Needs diffusers, torch and numpy; the README.md beside this file shows more.
"""

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image


class ClassConditionalLDMPipeline(DiffusionPipeline):
    """A UNet that attends to one token, that of the class.

    vae: None where the UNet denoises pixels. controlnet: None where there are no masks.
    id2label: {number: name} of the classes, {} where there are none.
    mask_values: what each class of a mask is in files (grey levels, or colours); empty for grey levels of 0 .. mask_max.
    mask_signed: the ControlNet reads one channel, as three in [-1, 1].
    mask_crop: of pictures that are not square 'center' takes the middle, 'pad' all, with the first class above and below.
    steps, guidance_scale, controlnet_scale: what a call takes where it does not say.
    """

    model_cpu_offload_seq = "class_embedder->unet->vae"
    _optional_components = ["vae", "controlnet"]

    def __init__(self, unet, scheduler, class_embedder, vae=None, controlnet=None, id2label=None, mask_values=(), mask_names=(),
                 mask_max=255, mask_signed=False, mask_crop="center", steps=20, guidance_scale=1.0, controlnet_scale=1.0):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, class_embedder=class_embedder, vae=vae, controlnet=controlnet)
        self.register_to_config(id2label=id2label or {}, mask_values=list(mask_values or ()), mask_names=list(mask_names or ()),
                                mask_max=mask_max, mask_signed=mask_signed, mask_crop=mask_crop, steps=steps,
                                guidance_scale=guidance_scale, controlnet_scale=controlnet_scale)

    @torch.no_grad()
    def __call__(self, class_label=None, mask=None, num_images=1, num_inference_steps=None, guidance_scale=None,
                 controlnet_conditioning_scale=None, generator=None, latents=None, eta=0.0, output_type="pil", return_dict=True):
        """Images.

        Args:
            class_label: a name or number, or a list of them; None means no class.
            mask: of a ControlNet: a picture (PIL or the path of one), classes or grey levels as integers (H, W), or a float tensor
                (K, H, W) or (N, K, H, W) in [0, 1] as the network reads it; or a list of any. One goes with every class_label.
            num_images: of each class_label and mask.
            num_inference_steps, guidance_scale, controlnet_conditioning_scale: None takes those of the folder. Guidance s is
                uncond + s (cond - uncond), 1 is off.
            generator: torch.Generator, or a list of one for each image.
            latents: (N, C, h, w) standard normal noise to begin with, in place of the generator's.
            eta: noise of DDIM.
            output_type: 'pil', 'np' (N, H, W, C) in [0, 1], 'pt' (N, C, H, W) in [0, 1], or 'latent'.

        Returns:
            ImagePipelineOutput with `images`.
        """
        device, dtype = self._execution_device, self.unet.dtype
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        labels, masks = self._labels(class_label), self._masks(mask)
        n = max(len(labels), 0 if masks is None else len(masks))
        if len(labels) not in (1, n) or masks is not None and len(masks) not in (1, n):
            raise ValueError(f"{len(labels)} class labels and {len(masks)} masks: give as many of both, or one of either")
        labels = torch.tensor(labels, device=device).expand(n).repeat_interleave(num_images)
        guided = scale != 1.0 and self.class_embedder.config.num_classes > 0
        context = self.class_embedder(labels)
        if guided:
            empty = self.class_embedder(torch.full_like(labels, self.class_embedder.config.num_classes))
            context = torch.cat([empty, context])
        more = {}
        if masks is not None:
            masks = masks.expand(n, -1, -1, -1).repeat_interleave(num_images, 0).to(device, dtype)
            more = {"controlnet_cond": torch.cat([masks] * (1 + guided)), "conditioning_scale":
                    self.config.controlnet_scale if controlnet_conditioning_scale is None else controlnet_conditioning_scale}

        shape = (n * num_images, self.unet.config.in_channels, *[self.unet.config.sample_size] * 2)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents of shape {tuple(latents.shape)}, not {shape}")
        self.scheduler.set_timesteps(self.config.steps if num_inference_steps is None else num_inference_steps, device=device)
        latents = latents.to(device, dtype) * self.scheduler.init_noise_sigma
        noisy = {"generator": generator, "eta": eta} if eta else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            out = self._predict(torch.cat([latents] * (1 + guided)), t, context, more)
            if guided:
                without, out = out.chunk(2)
                out = without + scale * (out - without)
            latents = self.scheduler.step(out, t, latents, return_dict=False, **noisy)[0]
        images = latents if output_type == "latent" else self._finish(latents, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _predict(self, x, t, context, more):
        x, residuals = self.scheduler.scale_model_input(x, t), {}
        # the class scales and shifts the activations too, where the network was built so
        adapting = {"class_labels": context[:, 0]} if self.unet.config.class_embed_type else {}
        if more:
            down, mid = self.controlnet(x, t, context, return_dict=False, **adapting, **more)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        # of a network that learned its variance too, the prediction
        return self.unet(x, t, context, return_dict=False, **adapting, **residuals)[0][:, :x.shape[1]]

    def _finish(self, latents, output_type):
        if self.vae is not None:
            latents = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        images = (latents.float() / 2 + 0.5).clamp(0, 1).cpu()
        if output_type == "pt":
            return images
        images = images.permute(0, 2, 3, 1).numpy()
        return images if output_type == "np" else self.numpy_to_pil(images)

    def _labels(self, asked):
        """The numbers of the classes; the number after the last one is no class."""
        count = self.class_embedder.config.num_classes
        names = {name: int(number) for number, name in self.config.id2label.items()}
        numbers = []
        for label in asked if isinstance(asked, (list, tuple)) else [asked]:
            number = count if label is None else names.get(label, label)
            if not isinstance(number, int) or not 0 <= number <= count:
                raise ValueError(f"class_label={label!r}; known: {', '.join(names) or 'none, this network has no classes'}")
            numbers.append(number)
        return numbers

    def _masks(self, asked):
        """float32 (N, K, H, W) as the ControlNet reads it; None where there is none."""
        if (asked is None) != (self.controlnet is None):
            raise ValueError("this pipeline follows a mask: give mask=" if asked is None else
                             "this pipeline has no ControlNet and follows no mask")
        if asked is None:
            return None
        side, channels = self._mask_side, 1 if self.config.mask_signed else self.controlnet.config.conditioning_channels
        masks = []
        for each in asked if isinstance(asked, (list, tuple)) else [asked]:
            if not (torch.is_tensor(each) and each.is_floating_point()):
                each = self._coded(self._indexed(each, side))
            each = each[None] if each.ndim == 3 else each
            if each.ndim != 4 or tuple(each.shape[1:]) != (channels, side, side):
                raise ValueError(f"a mask of shape {tuple(each.shape)}; expected ({channels}, {side}, {side}), one or N of them")
            masks.append(each.float())
        masks = torch.cat(masks)
        return (2 * masks - 1).expand(-1, 3, -1, -1) if self.config.mask_signed else masks

    @property
    def _mask_side(self):
        return self.unet.config.sample_size * 2 ** (len(self.controlnet.config.conditioning_embedding_out_channels) - 1)

    def _indexed(self, mask, side):
        """Classes, or grey levels, (side, side) of a picture or of integers (H, W)."""
        if isinstance(mask, (np.ndarray, torch.Tensor)):
            return torch.as_tensor(mask).cpu().long()
        image = mask if isinstance(mask, Image.Image) else Image.open(mask)
        values = self.config.mask_values
        in_colour = bool(values) and isinstance(values[0], (list, tuple))
        if in_colour:
            image = image.convert("RGB")
        elif image.mode == "1" and 1 in values and 255 not in values:
            image = Image.fromarray(np.asarray(image).astype(np.uint8))
        elif not (values and image.mode == "P" and not _is_grey(image)) and not image.mode.startswith("I"):
            image = image.convert("L")
        pad = self.config.mask_crop == "pad"
        found = np.asarray(image).astype(np.int64)
        if not values:
            return _square(found, side, pad)
        if in_colour:
            found, values = found @ (65536, 256, 1), [65536 * r + 256 * g + b for r, g, b in values]
        strange = np.setdiff1d(found, values)
        if len(strange):
            raise ValueError(f"the mask holds {len(strange)} values beside the declared {self.config.mask_values}, such as "
                             f"{tuple(int(strange[0]).to_bytes(3)) if in_colour else int(strange[0])}")
        order = np.argsort(values)
        return _square(order[np.searchsorted(np.asarray(values)[order], found)], side, pad)

    def _coded(self, index):
        """(H, W) -> float32 (K, H, W) in [0, 1]: a channel for each of three classes or more, else one."""
        count = len(self.config.mask_values)
        most = count - 1 if count else self.config.mask_max
        if index.ndim != 2 or index.min() < 0 or index.max() > most:
            raise ValueError(f"a mask of integers {tuple(index.shape)} in {int(index.min())} .. {int(index.max())}; expected "
                             f"(H, W) in 0 .. {most}")
        if count > 2:
            return torch.nn.functional.one_hot(index, count).permute(2, 0, 1).float()
        return index[None].float() / most


def _is_grey(image):
    palette = np.reshape(image.getpalette("RGB"), (-1, 3))
    return (palette == palette[:, :1]).all()


def _square(index, side, pad):
    """Classes (H, W) as (side, side) by nearest pixels, so that none are mixed: the middle square, or all of it beside zeros.

    Sizes are rounded as in training, where images are halved while that leaves them large enough.
    """
    image, decisive = Image.fromarray(index.astype(np.int32)), max if pad else min
    width, height = image.size
    while decisive(width, height) >= 2 * side:
        width, height = max(1, width // 2), max(1, height // 2)
    scale = side / decisive(width, height)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (width - side) // 2, (height - side) // 2
    image = image.resize((width, height), Image.Resampling.NEAREST).crop((left, top, left + side, top + side))
    return torch.from_numpy(np.asarray(image).astype(np.int64))
