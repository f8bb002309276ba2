"""What does it save to encode images once: a class-LDM training step on cached latents against one that encodes its images.

    python benchmarks/ldm_step.py                       # a smaller network at 128 px, 2-3 minutes on two cores
    python benchmarks/ldm_step.py --published --rounds 3 --batch 4

Diffusion-Model-SOTA's networks: the UNet `unet_label` with its class tokens, and the KL autoencoder of Stable Diffusion, whose
encoder is frozen there and yet runs at every step (ours: config.features.path=auto, which encodes once). Both steps are the same
but for where latents come from: noise, loss, backward pass, the engine's optimizer and moving average. Weights are drawn, which
changes no time.

Variants take turns in an order that rotates every round; the cached step stands twice among them (A/A), so its ratio shows
the noise. A figure is the median over rounds of the ratio of two times of the same round. Beside it stands what the numbers
of operations predict. Peak memory is that of a process of its own for each variant (on a GPU: of torch's allocator), with the
autoencoder in it both times, since previews are decoded by it.
"""

import argparse
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.timing import interleaved, ratio  # noqa: E402
from libs import backbones, codecs, diffusion  # noqa: E402
from libs.engine import optim  # noqa: E402

# Stable Diffusion's autoencoder and Diffusion-Model-SOTA's UNet, or both at about half their width
PUBLISHED = dict(pixels=256, ch=128, widths=(128, 256, 512, 512))
SMALLER = dict(pixels=128, ch=64, widths=(64, 128, 256, 256))
CLASSES, DECAY = 8, 0.9999
VARIANTS = ("cached", "encoded")


def build(sizes, device):
    """(UNet, codec) with drawn weights."""
    torch.manual_seed(0)
    net = backbones.get("unet_label", num_classes=CLASSES, sample_size=sizes["pixels"] // 8, block_out_channels=sizes["widths"])
    codec = codecs.get("kl", ddconfig=dict(double_z=True, z_channels=4, resolution=sizes["pixels"], in_channels=3, out_ch=3,
                                           ch=sizes["ch"], ch_mult=[1, 2, 4, 4], num_res_blocks=2, attn_resolutions=[],
                                           dropout=0.0))
    return net.to(device), codec.to(device)


def training_step(net, codec, *, encode, bf16):
    """A step of train_class_ldm.py; returns a function of a batch as the data layer gives it."""
    schedule = diffusion.schedule("linear")
    average, weights = [weight.detach().clone() for weight in net.parameters()], list(net.parameters())
    update = optim.Update(optim.make(weights, name="adamw", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01), grad_clip=1.0)
    denoise = diffusion.Denoiser(net, schedule)

    def step(batch):
        chosen = ("image", "label") if encode else ("mean", "std", "label")
        batch = {key: batch[key].float() if key != "label" else batch[key] for key in chosen}
        with torch.no_grad():
            z = codecs.latents(codec, batch)
        with torch.autocast(z.device.type, torch.bfloat16, enabled=bf16):
            t = schedule.sample_times(len(z), device=z.device)
            loss = diffusion.loss.simple(denoise, z, t, weighting="min_snr", label=batch["label"]).mean()
        loss.backward()
        update(loss.detach())
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - DECAY)
        if z.is_cuda:
            torch.cuda.synchronize()
    return step


def examples(sizes, codec, n, device):
    """Images, and the float16 moments that the feature store keeps of them."""
    image = torch.rand(n, 3, sizes["pixels"], sizes["pixels"], device=device) * 2 - 1
    with torch.no_grad():
        mean, logvar = codec.moments(image).chunk(2, dim=1)
    return {"image": image, "mean": mean.half(), "std": (0.5 * logvar).exp().half(),
            "label": torch.randint(CLASSES, (n,), device=device)}


def operations(sizes):
    """(of the UNet's training step, of the encoder) for one image, counted on shapes alone."""
    from torch.utils.flop_counter import FlopCounterMode
    net, codec = build(sizes, "meta")
    image = torch.empty(1, 3, sizes["pixels"], sizes["pixels"], device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        codec.net.encoder(image)
    return backbones.train_flops(net), counter.get_total_flops()


def peak_memory(args, variant):
    """Bytes at the most that a process needs for two steps of one variant."""
    own = [sys.executable, __file__, f"--memory_of={variant}", f"--batch={args.batch}", f"--threads={args.threads}",
           *["--published"] * args.published, *["--bf16"] * args.bf16]
    return int(subprocess.run(own, check=True, capture_output=True, text=True).stdout)


def tell_memory(args, sizes, device):
    """What `peak_memory` reads. The moments are made up: encoding would need what it is to be compared with."""
    net, codec = build(sizes, device)
    side = sizes["pixels"] // 8
    batch = {"image": torch.zeros(args.batch, 3, sizes["pixels"], sizes["pixels"], device=device),
             "label": torch.zeros(args.batch, dtype=torch.long, device=device)}
    batch |= {key: torch.ones(args.batch, 4, side, side, device=device).half() for key in ("mean", "std")}
    step = training_step(net, codec, encode=args.memory_of == "encoded", bf16=args.bf16)
    for _ in range(2):
        step(batch)
    on_gpu = device == "cuda"
    print(torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", action="store_true", help="the published sizes at 256 px")
    parser.add_argument("--bf16", action="store_true", help="autocast; the encoder stays in float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory_of", default="", choices=("", *VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes, device = PUBLISHED if args.published else SMALLER, "cuda" if torch.cuda.is_available() else "cpu"
    if args.memory_of:
        return tell_memory(args, sizes, device)
    # first: what a process needs at the most begins with what its parent has by then
    memory = {name: peak_memory(args, name) for name in VARIANTS}
    unet, encoder = operations(sizes)
    net, codec = build(sizes, device)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{args.threads} threads"
    print(f"UNet of {sum(weight.numel() for weight in net.parameters()) / 1e6:.0f} M parameters at {sizes['pixels']} px, batch "
          f"{args.batch}, {'bf16' if args.bf16 else 'float32'}, {where}")
    print(f"billions of operations an image: {unet / 1e9:.1f} of the UNet's step, {encoder / 1e9:.1f} of the encoder")
    batch = examples(sizes, codec, args.batch, device)
    steps = {name: training_step(net, codec, encode=name == "encoded", bf16=args.bf16) for name in (*VARIANTS, "cached again")}
    times = interleaved(steps, (batch,), args.rounds)

    print(f"\n{'':20}{'wall ms':>10}{'cpu ms':>10}{'peak GiB':>10}")
    for name in VARIANTS:
        wall, cpu = (statistics.median(t[clock] for t in times[name]) * 1e3 for clock in (0, 1))
        print(f"{name:20}{wall:10.0f}{cpu:10.0f}{memory[name] / 2 ** 30:10.2f}")
    print(f"\n{'ratio of times':34}{'wall':>8}{'cpu':>8}{'expected':>10}")
    for slow, fast, expected in (("cached again", "cached", "A/A"), ("encoded", "cached", f"{1 + encoder / unet:.1f}")):
        wall, cpu = (ratio(times, slow, fast, clock) for clock in (0, 1))
        print(f"{slow + ' / ' + fast:34}{wall:8.2f}{cpu:8.2f}{expected:>10}")
    print("expected: as the operations are, were all of them equally fast")


if __name__ == "__main__":
    main()
