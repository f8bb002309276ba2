"""What a sampler costs beside the network, and what guidance costs with one: time per guided network call.

    python benchmarks/sampling.py --steps=20 --rounds=15

First table: the network is free (it returns its input), so that all that is measured is the sampler, the guidance and the
schedule. Beside ours stand diffusers' schedulers, driven as its pipelines drive them.

Second table: 50 guided steps of a small text U-ViT, both halves in one batch, against U-ViT's published way: two passes, the
empty context copied to the device anew at each of them.

Variants take turns in rotating order; ours is measured twice (A/A), and ratios are medians over rounds.
"""

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import backbones, diffusion  # noqa: E402
from libs.diffusion import guidance, samplers  # noqa: E402


class Count(TorchDispatchMode):
    """Counts dispatched operations."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.total += 1
        return function(*args, **(kwargs or {}))


def free_network(x, t, label=None):
    return x


def ours(name, steps, x, label, scale):
    schedule = diffusion.schedule(name="sd")
    denoise = diffusion.Denoiser(free_network, schedule)
    guided = guidance.classifier_free(denoise, {"label": label}, {"label": torch.zeros_like(label)}, scale)
    return samplers.run(name, guided, x, schedule, steps)


def diffusers_way(make, steps, x, label, scale):
    """As StableDiffusionPipeline: both halves in one batch, chunk, scheduler.step."""
    scheduler = make()
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        both = scheduler.scale_model_input(torch.cat([x] * 2), t)
        off, on = free_network(both, t, label=torch.cat([torch.zeros_like(label), label])).chunk(2)
        x = scheduler.step(off + scale * (on - off), t, x, return_dict=False)[0]
    return x


def variants():
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
    betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return {
        "ours, DPM-Solver++(2M)": lambda *args: ours("dpmpp_2m", *args),
        "ours again (A/A)": lambda *args: ours("dpmpp_2m", *args),
        "ours, DPM-Solver++ fast": lambda *args: ours("dpmpp_fast", *args),
        "ours, DDIM": lambda *args: ours("ddim", *args),
        "diffusers, DPM-Solver++(2M)": lambda *args: diffusers_way(lambda: DPMSolverMultistepScheduler(**betas), *args),
        "diffusers, DDIM": lambda *args: diffusers_way(
            lambda: DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False), *args),
    }


def with_a_network(device, steps=50, images=4):
    """{name: call} of guided sampling by a small text U-ViT, both ways from the same noise."""
    torch.manual_seed(0)
    net = backbones.get(name="uvit_t2i", img_size=16, patch_size=2, in_chans=4, embed_dim=192, depth=4, num_heads=4,
                        clip_dim=768, num_clip_token=77).to(device).eval()
    schedule = diffusion.schedule(name="sd")
    denoise = diffusion.Denoiser(net, schedule)
    x, text = torch.randn(images, 4, 16, 16, device=device), torch.randn(images, 77, 768, device=device)
    empty = torch.randn(77, 768)

    def one_batch():
        guided = guidance.classifier_free(denoise, {"text": text}, {"text": empty.to(device).expand_as(text)}, 2.0)
        return samplers.run("dpmpp_fast", guided, x, schedule, steps)

    def two_passes():
        def guided(x, t):
            on = denoise(x, t, text=text)
            off = denoise(x, t, text=torch.stack([empty] * len(x)).to(device))
            eps = off.eps + 2.0 * (on.eps - off.eps)
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            return on._replace(x0=(x - sigma * eps) / alpha, eps=eps)
        return samplers.run("dpmpp_fast", guided, x, schedule, steps)

    with torch.no_grad():
        worst = (one_batch() - two_passes()).abs().max().item()
    assert worst < 1e-2, f"both ways must give the same images, they differ by {worst}"
    return {"ours, one batch of both halves": one_batch, "ours again (A/A)": one_batch,
            "two passes, context copied anew": two_passes}


def compare(title, found, steps, rounds, device):
    """Measure {name: call} in turns and print times, dispatched operations and ratios to the first."""
    names = list(found)
    seconds, operations = {name: [] for name in names}, {}

    def once(name):
        with torch.no_grad():
            found[name]()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    for name in names:
        once(name)
        with Count() as counted:
            once(name)
        operations[name] = counted.total / steps
    for turn in range(rounds):
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            begun = time.perf_counter()
            once(name)
            seconds[name].append((time.perf_counter() - begun) / steps)
    base = names[0]
    print(title)
    print(f"{'':32s} {'us per call':>12s} {'operations':>11s} {'time / ours':>12s}")
    for name in names:
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[base]))
        print(f"{name:32s} {1e6 * statistics.median(seconds[name]):12.0f} {operations[name]:11.1f} {ratio:12.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(0)).to(options.device)
    label = torch.arange(4, device=options.device)
    free = {name: functools.partial(call, options.steps, x, label, 4.0) for name, call in variants().items()}
    compare(f"{options.steps} guided steps, 4x4x32x32, a free network, {options.device}, {options.rounds} rounds", free,
            options.steps, options.rounds, options.device)
    compare(f"50 guided steps, 4x4x16x16, text U-ViT of 3 M parameters, {options.device}, 5 rounds",
            with_a_network(options.device), 50, 5, options.device)


if __name__ == "__main__":
    main()
