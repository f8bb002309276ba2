"""Pixels that are not numbers: where they first appear, and what to say of them."""

import torch


class NotFinite(FloatingPointError):
    """Images or latents hold nan or infinite values. rows: positions of these images in their batch."""

    def __init__(self, text, rows=()):
        super().__init__(text)
        self.rows = list(rows)


def rows_not_finite(values):
    """Positions of the rows of a Tensor (N, ...) that hold a value that is nan or infinite."""
    if not values.numel():
        return []
    return (~torch.isfinite(values)).reshape(len(values), -1).any(1).nonzero().flatten().tolist()


def check_pixels(images, name=None):
    """Raise NotFinite unless all values of images (N, C, H, W), or of a single one (C, H, W), are finite.

    name: position in the batch -> what messages call that image; by default its position.
    """
    images = images if images.ndim == 4 else images[None]
    rows = rows_not_finite(images)
    if rows:
        names = [name(row) if name else f"no. {row} of a batch of {len(images)}" for row in rows[:3]]
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        raise NotFinite(f"image {', '.join(names)}{more}: pixels are not finite (nan or infinite)", rows)


class Watch:
    """Sees each call of a denoiser: how many there were, and at which a value was first not finite.

    Attributes:
        calls: so far. first: (number of the call, its t, 'input' or 'output' of the network), or None.
    """

    def __init__(self):
        self.calls, self.first = 0, None

    def around(self, denoise):
        """The same denoiser, watched."""
        def watched(x, t):
            self.calls += 1
            if self.first is None and rows_not_finite(x):
                self.first = self.calls, t, "input"
            estimate = denoise(x, t)
            if self.first is None and rows_not_finite(estimate.x0):
                self.first = self.calls, t, "output"
            return estimate
        return watched

    def describe(self):
        """Where the first value appeared, as part of a sentence."""
        if self.first is None:
            return f"all {self.calls} steps of the sampler gave finite values, and the decoder did not"
        number, t, where = self.first
        if where == "output":
            return f"the network's output was first not finite at step {number} of {self.calls} (t = {t:.3g})"
        return f"the sampler's values were first not finite before step {number} of {self.calls} (t = {t:.3g})"


def advise(net):
    """What to do about values of a network that are not finite, by the precision that it runs in now."""
    device, dtype = next(net.parameters()).device.type, next(net.parameters()).dtype
    lower = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
    other = "other weights by --nnet_path=RUN/ckpts/STEP.ckpt"
    if lower in (torch.float16, torch.bfloat16):
        return (f"It runs in {str(lower).removeprefix('torch.')}, whose range or precision may not suffice: "
                f"--config.train.mixed_precision=no computes in float32; or take {other}")
    return (f"It runs in {str(lower).removeprefix('torch.')}, so the weights or the sampler's settings are at fault: "
            f"take {other}")
