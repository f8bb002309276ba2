"""What a sampler costs beside the network: time and dispatched operations per guided network call.

    python benchmarks/sampling.py --steps=20 --rounds=15

The network is free here (it returns its input), so that all that is measured is the sampler, the guidance and the
schedule. Beside ours stand diffusers' schedulers, driven as its pipelines drive them. Variants take turns in rotating
order; ours is measured twice (A/A), and ratios are medians over rounds.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import diffusion  # noqa: E402
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(0)).to(options.device)
    label = torch.arange(4, device=options.device)
    found, names = variants(), list(variants())
    seconds, operations = {name: [] for name in names}, {}

    def once(name):
        with torch.no_grad():
            found[name](options.steps, x, label, 4.0)
        if x.is_cuda:
            torch.cuda.synchronize()

    for name in names:
        once(name)
        with Count() as count:
            once(name)
        operations[name] = count.total / options.steps
    for turn in range(options.rounds):
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            begun = time.perf_counter()
            once(name)
            seconds[name].append((time.perf_counter() - begun) / options.steps)
    base = names[0]
    print(f"{options.steps} guided steps, 4x4x32x32, {options.device}, {options.rounds} rounds")
    print(f"{'':30s} {'us per call':>12s} {'operations':>11s} {'time / ours':>12s}")
    for name in names:
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[base]))
        print(f"{name:30s} {1e6 * statistics.median(seconds[name]):12.0f} {operations[name]:11.1f} {ratio:12.2f}")


if __name__ == "__main__":
    main()
