"""How fast are a training step and a sampling step of ADM's UNet, ours against a plain version and two libraries.

    pip install -r benchmarks/requirements.txt
    python benchmarks/adm.py --rounds 7 --batch 4 --threads 2
    python benchmarks/adm.py --channels 32 --size 32 --batch 2 --rounds 3 --threads 1        (seconds)

ADM at 64 px with 128 channels, 102 M parameters. The plain version works as the published code does: convolutions of width 1
in attention, its products by einsum with a softmax in float32, always checkpointed; normalization in float32, then scale and
shift; AdamW tensor by tensor, the average in a loop over parameters, the norm of each weight and each gradient read back by
.item(). Both hold the same weights and are checked to predict the same. diffusers' UNet2DModel and MONAI's
DiffusionModelUNet are built to about the same size and train with our optimizer and average, so that the networks alone
differ; without MONAI its rows are left out.

Sampling is one call of the network without gradients. In bfloat16 ours has its weights lowered once (libs/backbones/precision.py),
the plain version runs under autocast, and the libraries are cast whole.

Variants take turns in an order that rotates every round, the plain float32 step stands twice among them (A/A), and a figure is
the median over rounds of the ratio of two times of the same round (see benchmarks/train_step.py).
"""

import argparse
import copy
import math
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.timing import interleaved, ratio  # noqa: E402
from libs import backbones  # noqa: E402
from libs.backbones import adm  # noqa: E402
from libs.backbones.precision import lower  # noqa: E402
from libs.engine import optim  # noqa: E402

MULT, DEPTH = (1, 2, 3, 4), 2
ADAMW = dict(lr=2e-4, betas=(0.99, 0.999), weight_decay=0.03)
DECAY = 0.9999


class PlainNorm(adm.Norm):
    def forward(self, x):
        return F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps).type(x.dtype)


class PlainResBlock(adm.ResBlock):
    def forward(self, x, embedding):
        norm, act, conv = self.in_layers
        h = conv(self._resampled(act(norm(x))))
        x = self._resampled(x)
        scale, shift = self.emb_layers(embedding).type(h.dtype)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers[1:](h)

    def _resampled(self, x):
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2, 2) if self.resample == "down" else x


class PlainAttention(adm.AttentionBlock):
    def forward(self, x):
        return checkpoint(self._attended, x, use_reentrant=False)

    def _attended(self, x):
        n, channels, *size = x.shape
        x = x.reshape(n, channels, -1)
        qkv = F.conv1d(self.norm(x), self.qkv.weight, self.qkv.bias)
        width = channels // self.num_heads
        q, k, v = qkv.reshape(n * self.num_heads, 3 * width, -1).split(width, dim=1)
        scale = 1 / math.sqrt(math.sqrt(width))
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
        h = torch.einsum("bts,bcs->bct", weight, v).reshape(n, channels, -1)
        return (x + F.conv1d(h, self.proj_out.weight, self.proj_out.bias)).reshape(n, channels, *size)


class PlainUNet(adm.UNet):
    def forward(self, x, t):
        half = self.model_channels // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half).to(x.device)
        angles = t[:, None].float() * frequencies[None]
        embedding = self.time_embed(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))
        passed = []
        for level in self.input_blocks:
            x = level(x, embedding)
            passed.append(x)
        x = self.middle_block(x, embedding)
        for level in self.output_blocks:
            x = level(torch.cat([x, passed.pop()], dim=1), embedding)
        return self.out(x)


PLAIN = {adm.Norm: PlainNorm, adm.ResBlock: PlainResBlock, adm.AttentionBlock: PlainAttention, adm.UNet: PlainUNet}


def plain(net):
    """A copy of our network that computes the published way."""
    net = copy.deepcopy(net)
    for module in net.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return net


def diffusers_net(channels, size):
    from diffusers import UNet2DModel
    net = UNet2DModel(sample_size=size, block_out_channels=[channels * m for m in MULT], layers_per_block=DEPTH,
                      down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * 3),
                      up_block_types=(*["AttnUpBlock2D"] * 3, "UpBlock2D"), downsample_type="resnet", upsample_type="resnet",
                      resnet_time_scale_shift="scale_shift", attention_head_dim=min(64, channels))
    return net, lambda x, t: net(x, t).sample


def monai_net(channels, size):
    from monai.networks.nets import DiffusionModelUNet
    net = DiffusionModelUNet(spatial_dims=2, in_channels=3, out_channels=3, num_res_blocks=DEPTH,
                             channels=[channels * m for m in MULT], attention_levels=(False, True, True, True),
                             num_head_channels=min(64, channels), resblock_updown=True, use_flash_attention=True)
    return net, net


def update_ours(net):
    """The engine's update of all weights and their average; returns a function of the loss."""
    params = list(net.parameters())
    ema, update = [p.detach().clone() for p in params], optim.Update(optim.make(params, name="adamw", **ADAMW))

    def step(loss):
        update(loss)
        torch._foreach_lerp_(ema, params, 1 - DECAY)
    return step


def update_plain(net):
    """The published update: norms, AdamW and average tensor by tensor."""
    params = list(net.parameters())
    ema = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, foreach=False, fused=False, **ADAMW)

    def step(loss):
        squares = [0.0, 0.0]
        for p in params:
            with torch.no_grad():
                squares[0] += torch.norm(p, p=2).item() ** 2
                squares[1] += torch.norm(p.grad, p=2).item() ** 2
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for average, value in zip(ema, params, strict=True):
                average.mul_(DECAY).add_(value, alpha=1 - DECAY)
    return step


def training(call, update, bf16):
    def step(x, t, noise):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = call(x, t)
        loss = (out.float() - noise).square().mean()
        loss.backward()
        update(loss.detach())
    return step


def sampling(call, bf16=False, dtype=torch.float32):
    def step(x, t, noise):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            call(x.to(dtype), t)
    return step


def networks(channels, size):
    """{name: (network, function of (x, t))}, all of about the same size; ours and the plain one predict the same."""
    ours = backbones.get("adm_unet", image_size=size, model_channels=channels, out_channels=3, num_res_blocks=DEPTH,
                         attention_resolutions=(2, 4, 8), channel_mult=MULT, num_head_channels=min(64, channels),
                         use_scale_shift_norm=True, resblock_updown=True)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p), alpha=0.01)
    nets = {"ours": (ours, ours), "diffusers": diffusers_net(channels, size)}
    nets["plain"] = (plain(ours),) * 2
    try:
        nets["MONAI"] = monai_net(channels, size)
    except ModuleNotFoundError:
        print("MONAI is not installed (pip install -r benchmarks/requirements.txt): its rows are left out")
    x, t = torch.randn(2, 3, size, size), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        expected = nets["plain"][1](x, t)
        error = ((ours(x, t) - expected).abs().max() / expected.abs().max()).item()
    print(f"{size} px, {channels} channels; parameters: "
          + ", ".join(f"{name} {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M" for name, (net, _) in nets.items())
          + f"\nlargest difference between ours and the plain version: {error:.1e} of the largest magnitude")
    if error > 1e-4:
        raise RuntimeError("the plain version is not the same network")
    return nets


def training_steps(nets):
    # both precisions of a variant go on with the same weights, of which only the times matter
    updates = {name: (update_plain if name == "plain" else update_ours)(net) for name, (net, _) in nets.items()}
    steps = {f"{name} {'bf16' if bf16 else 'fp32'}": training(call, updates[name], bf16)
             for bf16 in (False, True) for name, (_, call) in nets.items()}
    return steps | {"plain fp32 again": steps["plain fp32"]}


def sampling_steps(nets):
    steps = {f"{name} fp32": sampling(call) for name, (_, call) in nets.items()}
    steps["plain fp32 again"] = steps["plain fp32"]
    steps["plain bf16"] = sampling(nets["plain"][1], bf16=True)
    steps["ours bf16"] = sampling(lower(copy.deepcopy(nets["ours"][0]), torch.bfloat16))
    for name in nets.keys() - {"ours", "plain"}:
        low = copy.deepcopy(nets[name][0]).to(torch.bfloat16)
        call = low if name == "MONAI" else lambda x, t, low=low: low(x, t).sample
        steps[f"{name} bf16"] = sampling(call, dtype=torch.bfloat16)
    return steps


def report(title, steps, batch, rounds, goals):
    times = interleaved(steps, batch, rounds)
    print(f"\n{title:34}{'wall ms':>8}{'cpu ms':>8}")
    for name in sorted(steps):
        wall, cpu = (statistics.median(t[clock] for t in times[name]) * 1e3 for clock in (0, 1))
        print(f"{name:34}{wall:8.0f}{cpu:8.0f}")
    print(f"{'ratio of times':34}{'wall':>8}{'cpu':>8}{'goal':>8}")
    libraries = {(f"{name} {kind}", f"ours {kind}"): "1" for name in ("diffusers", "MONAI") for kind in ("fp32", "bf16")}
    for (slow, fast), goal in (goals | libraries).items():
        if slow in steps:
            wall, cpu = (ratio(times, slow, fast, clock) for clock in (0, 1))
            print(f"{slow + ' / ' + fast:34}{wall:8.2f}{cpu:8.2f}{goal:>8}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    nets = networks(args.channels, args.size)
    x, noise = torch.randn(2, args.batch, 3, args.size, args.size)
    batch = (x, torch.rand(args.batch) * 999, noise)
    print(f"batch {args.batch}, {torch.get_num_threads()} threads, {args.rounds} rounds")
    again = {("plain fp32 again", "plain fp32"): "A/A", ("plain fp32", "plain bf16"): ""}
    report("sampling step", sampling_steps(nets), batch, args.rounds, again | {
        ("plain fp32", "ours fp32"): "", ("plain bf16", "ours bf16"): "", ("plain fp32", "ours bf16"): "4*"})
    report("training step", training_steps(nets), batch, args.rounds, again | {
        ("plain fp32", "ours fp32"): "1.25", ("plain bf16", "ours bf16"): "1.8*", ("plain fp32", "ours bf16"): "2.7*"})
    print("* on processors with AMX bf16 matrix units; this one "
          f"{'has them' if torch.cpu._is_amx_tile_supported() else 'has none'}")


if __name__ == "__main__":
    main()
