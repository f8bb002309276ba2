"""Optimizers, learning rates and the update of the weights, without a device synchronisation.

An update of all weights is one fused AdamW call. What surrounds it - gradient norm, clipping, the check for non-finite
numbers - is a handful of operations on scalars that stay on the device.
"""

import math

import torch

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
EIGHT_BIT = "adamw_8bit"
MOMENTS = {"exp_avg": "adamw", "state1": EIGHT_BIT}  # the first moment, as optimizers name it, tells them apart


def make(parameters, *, name="adamw", lr, **kwargs):
    """An optimizer by name; kwargs as in torch.optim (betas, weight_decay, eps).

    'adamw' and 'adam' in their fused form; 'adamw_8bit' of bitsandbytes, whose moments take a quarter of the memory.
    """
    if name not in (*OPTIMIZERS, EIGHT_BIT):
        raise ValueError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}, {EIGHT_BIT}")
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"optimizer.lr must be a positive number, not {lr}")
    if name == EIGHT_BIT:
        return _eight_bit()(parameters, lr=lr, **kwargs)
    return OPTIMIZERS[name](parameters, lr=lr, fused=True, **kwargs)


def check_moments(optimizer, saved, folder, began_with=""):
    """Raise ValueError where a checkpoint holds the moments of another kind of optimizer than the one that is to go on.

    Args:
        saved: names of what the checkpoint holds of each weight; none is a checkpoint of step 0, which any optimizer may take.
        folder: that checkpoint, for the message.
        began_with: the optimizer.name that the run's config.json says, '' where it says none.
    """
    mine = "exp_avg" if isinstance(optimizer, torch.optim.Adam) else "state1"  # of bitsandbytes
    theirs = next((name for name in MOMENTS if name in saved), mine)
    if theirs != mine:
        name = began_with if began_with and (began_with == EIGHT_BIT) == (theirs == "state1") else MOMENTS[theirs]
        needs = ", which needs bitsandbytes and a GPU" if name == EIGHT_BIT else ""
        raise ValueError(f"{folder} holds the moments of optimizer.name={name!r} ({theirs}); here it is {MOMENTS[mine]!r}, which "
                         f"keeps others ({mine}); some configs choose by what a machine has. To go on as the run was begun: "
                         f"--config.optimizer.name={name}{needs}")


def _eight_bit():
    """The class AdamW8bit of bitsandbytes."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except Exception as error:  # it also fails where its compiled part does not fit the machine
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError("optimizer.name='adamw_8bit' needs the package bitsandbytes, which could not be imported "
                         f"({type(error).__name__}: {reason}): pip install bitsandbytes, or set --config.optimizer.name=adamw, "
                         "whose moments take four times the memory") from error
    return AdamW8bit


def lr_factor(step, *, name="customized", warmup_steps=0, n_steps):
    """Factor on the learning rate for the update after `step` finished ones.

    'customized' (U-ViT's name) and 'constant' rise linearly from 0 and stay at 1: min(step / warmup_steps, 1), so that the
    very first update of a warm-up has rate 0 as published. 'cosine' rises the same way, then falls as half a cosine to 0
    at n_steps; 'linear' falls as a line (guided-diffusion's lr_anneal_steps, with warmup_steps=0).
    """
    if name not in ("customized", "constant", "cosine", "linear"):
        raise ValueError(f"unknown lr_scheduler {name!r}; known: customized, constant, cosine, linear")
    rise = min(step / warmup_steps, 1.0) if warmup_steps > 0 else 1.0
    if name in ("customized", "constant"):
        return rise
    if n_steps <= warmup_steps:
        raise ValueError(f"a {name} schedule over {n_steps} steps cannot begin with {warmup_steps} steps of warm-up")
    progress = min(max(step - warmup_steps, 0) / (n_steps - warmup_steps), 1.0)
    return rise * (1.0 - progress if name == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress)))


class Update:
    """One optimizer step that leaves the weights alone once a loss or gradient was not finite.

    The verdict is a scalar on the device that turns NaN for good; the fused optimizers skip their work on the device
    when told `found_inf` = 1 (the mechanism of torch.amp.GradScaler). So a bad number can never reach a weight, and
    the host need not look before the next log line. Of other optimizers it does look, before each step.
    """

    def __init__(self, optimizer, *, grad_clip=0.0, world=1, scaler=None):
        self.optimizer, self.grad_clip, self.world, self.scaler = optimizer, grad_clip, world, scaler
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        self.health = torch.zeros((), device=self.parameters[0].device)

    def __call__(self, loss):
        """Apply the gradients, then clear them.

        Args:
            loss: detached scalar Tensor of this step; checked together with the gradients.

        Returns:
            (norm, verdict): scalar Tensors, the gradients' norm before clipping, and a number that is finite if and
            only if this step was.
        """
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # In float16 an overflowing gradient is routine: the scaler skips that step and lowers its scale.
        verdict = loss + norm if self.scaler is None else loss * 1.0
        if self.world > 1:
            torch.distributed.all_reduce(verdict)
        self.health.add_(verdict, alpha=0.0)  # 0 * inf and 0 * nan are nan, and stay
        scale = (norm / self.grad_clip).clamp_(min=1.0) if self.grad_clip else None
        if self.scaler is None and self.fused:
            self.optimizer.grad_scale, self.optimizer.found_inf = scale, self.health.nan_to_num(nan=1.0)
            self.optimizer.step()
        else:
            if scale is not None:
                torch._foreach_div_(gradients, scale)
            if self.scaler is not None:
                self.scaler.step(self.optimizer)
                self.scaler.update()
            elif self.health.isfinite():  # waits for the device
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, verdict
