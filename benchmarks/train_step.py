"""How fast is a U-ViT training step: forward, backward, optimizer and EMA, ours against a plain version.

    python benchmarks/train_step.py --rounds 11 --batch 4 --threads 2

U-ViT-S/2 at CIFAR-10 size. The plain version works as the published code does: q, k and v by indexing the
packed projection three times after a cast to float32, AdamW tensor by tensor, EMA in a Python loop over
parameters. Both hold the same weights and are checked to predict the same.

Variants take turns in an order that rotates every round; the plain float32 step stands twice among them
(A/A), so its ratio shows the noise. A figure is the median over rounds of the ratio of two times of the same
round, once by wall clock and once by processor time of this process, which other load on the machine disturbs
less.

Where a GPU is present: images per second and share of the card's peak for U-ViT-S/2 and L/2 on latents, eager
and compiled, in bfloat16.
"""

import argparse
import copy
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.timing import interleaved, ratio  # noqa: E402
from libs import backbones  # noqa: E402
from libs.engine import optim  # noqa: E402

SMALL = dict(name="uvit", img_size=32, patch_size=2, in_chans=3, embed_dim=512, depth=12, num_heads=8)
LATENT = dict(name="uvit", img_size=32, patch_size=2, in_chans=4, num_classes=1001)
GPU_NETS = {"U-ViT-S/2": LATENT | dict(embed_dim=512, depth=12, num_heads=8),
            "U-ViT-L/2": LATENT | dict(embed_dim=1024, depth=20, num_heads=16)}
# dense bf16 TFLOP/s of the cards by the name torch gives
PEAK = {"H100": 798e12, "H200": 798e12, "A100": 312e12}
ADAMW = dict(lr=2e-4, betas=(0.99, 0.999), weight_decay=0.03)
DECAY = 0.9999


class PlainAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        n, length, dim = x.shape
        qkv = self.qkv(x).view(n, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).float()
        out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(out.permute(0, 2, 1, 3).reshape(n, length, dim))


class PlainBlock(nn.Module):
    def __init__(self, dim, heads, skip):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = PlainAttention(dim, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "act": nn.GELU(),
                                  "fc2": nn.Linear(4 * dim, dim)})
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None

    def forward(self, x, skip=None):
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](self.mlp["act"](self.mlp["fc1"](self.norm2(x))))


class PlainUViT(nn.Module):
    """Unconditional U-ViT with the same parameters as ours, in the published order of operations."""

    def __init__(self, *, img_size, patch_size, in_chans, embed_dim, depth, num_heads):
        super().__init__()
        self.patch, self.channels, self.dim = patch_size, in_chans, embed_dim
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)})
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (img_size // patch_size) ** 2, embed_dim))
        self.in_blocks = nn.ModuleList(PlainBlock(embed_dim, num_heads, False) for _ in range(depth // 2))
        self.mid_block = PlainBlock(embed_dim, num_heads, False)
        self.out_blocks = nn.ModuleList(PlainBlock(embed_dim, num_heads, True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size ** 2 * in_chans)
        self.final_layer = nn.Conv2d(in_chans, in_chans, 3, padding=1)

    def forward(self, image, t):
        half = self.dim // 2
        freqs = torch.exp(-torch.log(torch.tensor(1e4)) * torch.arange(half, dtype=torch.float32) / half)
        angles = t[:, None].float() * freqs.to(t.device)[None]
        time_token = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1).unsqueeze(1)
        x = self.patch_embed["proj"](image).flatten(2).transpose(1, 2)
        x = torch.cat((time_token, x), dim=1)
        x = x + self.pos_embed
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        x = self.decoder_pred(self.norm(x))[:, 1:, :]
        n, length, _ = x.shape
        side, p, c = int(length ** 0.5), self.patch, self.channels
        x = x.view(n, side, side, p, p, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, side * p, side * p)
        return self.final_layer(x)


def ours_step(net, bf16):
    """A training step the way this repository takes it; returns a function of a batch (x, t, noise).

    The engine's own update: fused AdamW with the gradients' norm and the check for non-finite numbers, which the plain
    step does without, and the average by one operation.
    """
    ema, params = [p.detach().clone() for p in net.parameters()], list(net.parameters())
    update = optim.Update(optim.make(params, name="adamw", **ADAMW))

    def step(x, t, noise):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            out = net(x, t)
        loss = (out.float() - noise).square().mean()
        loss.backward()
        update(loss.detach())
        torch._foreach_lerp_(ema, params, 1 - DECAY)
    return step


def plain_step(net, bf16):
    """The same step the way the published code takes it."""
    ema = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters(), foreach=False, fused=False, **ADAMW)

    def step(x, t, noise):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            out = net(x, t)
        loss = (out.float() - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for average, value in zip(ema.parameters(), net.parameters(), strict=True):
                average.data.mul_(DECAY).add_(value.data, alpha=1 - DECAY)
    return step


def on_cpu(rounds, batch_size):
    torch.manual_seed(0)
    ours = backbones.get(**SMALL)
    plain = PlainUViT(**{key: value for key, value in SMALL.items() if key != "name"})
    plain.load_state_dict(ours.state_dict(), strict=True)
    x, noise = torch.randn(2, batch_size, 3, 32, 32)
    batch = (x, torch.rand(batch_size) * 999, noise)
    with torch.no_grad():
        error = (ours(*batch[:2]) - plain(*batch[:2])).abs().max().item()
    print(f"U-ViT-S/2, {sum(p.numel() for p in ours.parameters()):,} parameters, batch {batch_size}, "
          f"{torch.get_num_threads()} threads; largest difference between the two {error:.1e}")
    if error > 1e-4:
        raise RuntimeError("the plain version is not the same network")
    steps = {"plain fp32": plain_step(copy.deepcopy(plain), False),
             "plain fp32 again": plain_step(copy.deepcopy(plain), False),
             "ours fp32": ours_step(copy.deepcopy(ours), False),
             "plain bf16": plain_step(copy.deepcopy(plain), True),
             "ours bf16": ours_step(copy.deepcopy(ours), True)}
    times = interleaved(steps, batch, rounds)

    print(f"\n{'':20}{'wall ms':>10}{'cpu ms':>10}")
    for name in steps:
        wall, cpu = (statistics.median(t[clock] for t in times[name]) * 1e3 for clock in (0, 1))
        print(f"{name:20}{wall:10.0f}{cpu:10.0f}")
    print(f"\n{'ratio of times':34}{'wall':>8}{'cpu':>8}{'goal':>8}")
    for slow, fast, goal in (("plain fp32 again", "plain fp32", "A/A"), ("plain fp32", "ours fp32", "1.08"),
                             ("plain bf16", "ours bf16", "1.25"), ("plain fp32", "ours bf16", "2.2*"),
                             ("plain fp32", "plain bf16", "")):
        wall, cpu = (ratio(times, slow, fast, clock) for clock in (0, 1))
        print(f"{slow + ' / ' + fast:34}{wall:8.2f}{cpu:8.2f}{goal:>8}")
    print("* on processors with AMX bf16 matrix units; this one "
          f"{'has them' if torch.cpu._is_amx_tile_supported() else 'has none'}")


def on_gpu(rounds, batch_size):
    card = torch.cuda.get_device_name()
    peak = next((value for name, value in PEAK.items() if name in card), None)
    print(f"\n{card}, batch {batch_size}, bf16 autocast\n{'':24}{'ms':>8}{'img/s':>10}{'of peak':>9}")
    torch.set_float32_matmul_precision("high")
    for name, kwargs in GPU_NETS.items():
        x, noise = (torch.randn(batch_size, 4, 32, 32, device="cuda") for _ in range(2))
        t = torch.rand(batch_size, device="cuda") * 999
        label = torch.randint(1001, (batch_size,), device="cuda")
        for compiled in (False, True):
            net = backbones.get(**kwargs).cuda()
            flops = backbones.train_flops(net)
            run = torch.compile(net) if compiled else net
            conditioned = _WithLabel(net, run, label)
            step = ours_step(conditioned, True)
            for _ in range(5):
                step(x, t, noise)
            seconds = statistics.median(_gpu_seconds(step, (x, t, noise)) for _ in range(rounds))
            rate = batch_size / seconds
            share = f"{rate * flops / peak:9.1%}" if peak else f"{'?':>9}"
            mode = "compiled" if compiled else "eager"
            print(f"{name + ' ' + mode:24}{seconds * 1e3:8.1f}{rate:10.0f}{share}")
            del net, run, conditioned, step
            torch.cuda.empty_cache()


class _WithLabel:
    """A network with its labels fixed, with the two things a step needs of it."""

    def __init__(self, net, run, label):
        self.parameters, self.run, self.label = net.parameters, run, label

    def __call__(self, x, t):
        return self.run(x, t, label=self.label)


def _gpu_seconds(step, batch, repeats=5):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        step(*batch)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gpu_batch", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    on_cpu(args.rounds, args.batch)
    if torch.cuda.is_available():
        on_gpu(args.rounds, args.gpu_batch)


if __name__ == "__main__":
    main()
