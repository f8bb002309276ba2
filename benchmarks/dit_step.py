"""What each of fast-DiT's options gives a DiT's training step, in one table; and ours against diffusers' DiT of the same size.

    python benchmarks/dit_step.py                                             # DiT-S/2, 2-3 minutes on two cores
    python benchmarks/dit_step.py --model=DiT-XL/2 --batch=64 --compile       # on a GPU

The step is that of train_dit.py: hybrid loss, backward pass, the engine's optimizer and moving average, on 4 x 32 x 32 latents of
256-pixel images (`--side`). Each row compares two such steps that differ in one thing:

    stored latents   taken from the feature store, or encoded at every step by Stable Diffusion's KL autoencoder (published size)
    bf16             autocast, or float32
    checkpointing    blocks computed again in the backward pass, or their activations kept
    TF32             in the float32 products, or full float32
    compiled         torch.compile, or eager (`--compile`: it takes minutes)
    attention        the kernel that `auto` chooses, or torch's fused one
    ours             our network, or diffusers' DiTTransformer2DModel with the same weights, which is checked to predict the same

Variants take turns in an order that rotates every round; one of them stands twice among them (A/A), so its ratio shows the noise.
`speed` is the median over rounds of the ratio of two times of the same round, `cpu` the same by processor time, which other load on
the machine disturbs less; `expected` is what the numbers of operations say where they say something. Memory is what two steps need
at the most beyond what lay there before them (libraries, autoencoder, weights and their average), in a process of its own for each
variant; on a GPU as torch's allocator counts it. Weights are drawn, which changes no time; our variants share one network, so that
large ones fit.

For comparison, fast-DiT's README on an A100 (XL/2, checkpointing on): mixed precision 1.30 times as fast, stored latents 1.50
beside it; without checkpointing its batch did not fit.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.timing import interleaved, ratio  # noqa: E402
from libs import backbones, codecs, diffusion, nn  # noqa: E402
from libs.engine import optim  # noqa: E402

CLASSES, DECAY = 1000, 0.9999
AUTOENCODER = dict(double_z=True, z_channels=4, resolution=256, in_channels=3, out_ch=3, ch=128, ch_mult=[1, 2, 4, 4],
                   num_res_blocks=2, attn_resolutions=[], dropout=0.0)
VARIANTS = {
    "float32": {}, "float32 again": {}, "encoded": dict(encode=True), "checkpointed": dict(checkpoint=True),
    "TF32": dict(tf32=True), "compiled": dict(compiled=True), "diffusers": dict(theirs=True),
    "bf16": dict(bf16=True), "bf16 checkpointed": dict(bf16=True, checkpoint=True), "bf16 compiled": dict(bf16=True, compiled=True),
    "bf16 fused attention": dict(bf16=True, attention="sdpa"), "bf16 diffusers": dict(bf16=True, theirs=True)}
# (what is compared, without it, with it)
ROWS = (("A/A", "float32 again", "float32"), ("stored latents", "encoded", "float32"), ("bf16", "float32", "bf16"),
        ("stored latents and bf16", "encoded", "bf16"), ("checkpointing", "float32", "checkpointed"),
        ("checkpointing in bf16", "bf16", "bf16 checkpointed"), ("TF32", "float32", "TF32"), ("compiled", "float32", "compiled"),
        ("compiled in bf16", "bf16", "bf16 compiled"), ("attention in bf16", "bf16 fused attention", "bf16"),
        ("ours", "diffusers", "float32"), ("ours in bf16", "bf16 diffusers", "bf16"))


class Trained:
    """A network with its optimizer and average; call it to predict."""

    def __init__(self, net, call):
        self.net, self.call = net, call
        self.weights = [weight for weight in net.parameters() if weight.requires_grad]
        self.average = [weight.detach().clone() for weight in self.weights]
        self.update = optim.Update(optim.make(self.weights, name="adamw", lr=1e-4, weight_decay=0.0))

    def finish(self, loss):
        """What follows the loss: gradients, weights, average."""
        loss.backward()
        self.update(loss.detach())
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1 - DECAY)


def build(args, device):
    """Our DiT with drawn weights; none are 0, as some are before training, so that outputs can be compared."""
    torch.manual_seed(0)
    net = backbones.get("dit", model=args.model, input_size=args.side, num_classes=CLASSES).to(device)
    for weight in net.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.02)
    return net


def diffusers_twin(net, device):
    """diffusers' DiT with the weights of ours. Each of its blocks embeds time and class anew, by weights of its own."""
    from diffusers import DiTTransformer2DModel
    dim, heads = net.pos_embed.shape[2], net.blocks[0].attn.num_heads
    twin = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=dim // heads, in_channels=net.shape[0], out_channels=net.out_channels,
        num_layers=len(net.blocks), sample_size=net.shape[1], patch_size=net.x_embedder.proj.kernel_size[0],
        num_embeds_ada_norm=net.num_classes, norm_eps=1e-6).to(device)
    own = net.state_dict()
    names = {"pos_embed.proj": "x_embedder.proj", "proj_out_1": "final_layer.adaLN_modulation.1",
             "proj_out_2": "final_layer.linear"}
    for i in range(len(net.blocks)):
        block, ours = f"transformer_blocks.{i}.", f"blocks.{i}."
        names |= {block + "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
                  block + "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
                  block + "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
                  block + "norm1.linear": ours + "adaLN_modulation.1", block + "attn1.to_out.0": ours + "attn.proj",
                  block + "ff.net.0.proj": ours + "mlp.fc1", block + "ff.net.2": ours + "mlp.fc2"}
    state = {f"{new}.{kind}": own[f"{old}.{kind}"] for new, old in names.items() for kind in ("weight", "bias")
             if f"{old}.{kind}" in own}
    for i in range(len(net.blocks)):
        for kind in ("weight", "bias"):
            for part, value in zip("qkv", own[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)):
                state[f"transformer_blocks.{i}.attn1.to_{part}.{kind}"] = value
    missing, unexpected = twin.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"pos_embed.pos_embed"}:
        raise RuntimeError(f"diffusers' DiT has other parts than expected: {missing[:3]}, {unexpected[:3]}")
    for block in twin.transformer_blocks:
        # its frequencies end at 1 / 10000, the published ones one step before
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return twin


def difference(net, twin, x):
    """The largest difference between what the two predict, relative to the largest output."""
    t, label = torch.linspace(0, 999, len(x), device=x.device), torch.arange(len(x), device=x.device)
    with torch.no_grad():
        ours, theirs = net.eval()(x, t, label), twin.eval()(x, timestep=t, class_labels=label).sample
    net.train(), twin.train()
    return ((ours - theirs).abs().max() / ours.abs().max()).item()


def trained(args, device, *, theirs=False):
    """(our network, ready for training), or diffusers'."""
    net = build(args, device)
    if not theirs:
        return Trained(net.train(), net)
    twin = diffusers_twin(net, device)
    return Trained(twin.train(), lambda x, t, label: twin(x, timestep=t, class_labels=label).sample)


def training_step(part, codec, *, encode=False, bf16=False, checkpoint=False, tf32=False, compiled=False, attention="auto",
                  theirs=False):
    """A step of train_dit.py; returns a function of a batch as the data layer gives it."""
    schedule = diffusion.schedule("linear")
    call = torch.compile(part.call) if compiled else part.call

    def predict(x, t, label):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            return call(x, t, label)

    denoise = diffusion.Denoiser(predict, schedule, learned_var=True)

    def step(batch):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        former, part.net.use_checkpoint = nn.use_backend(attention), checkpoint
        chosen = ("image",) if encode else ("mean", "std")
        with torch.no_grad():
            z = codecs.latents(codec, {key: batch[key].float() for key in chosen})
        t = schedule.sample_times(len(z), device=z.device)
        part.finish(diffusion.loss.hybrid(denoise, z, t, label=batch["label"]).loss.mean())
        nn.use_backend(former)
        if z.is_cuda:
            torch.cuda.synchronize()
    return step


def examples(args, device):
    """Images, and float16 moments as the feature store keeps them; these are made up, which changes no time."""
    mean, std = (torch.rand(2, args.batch, 4, args.side, args.side, device=device) + 0.5).half()
    return {"image": torch.rand(args.batch, 3, 8 * args.side, 8 * args.side, device=device) * 2 - 1, "mean": mean, "std": std,
            "label": torch.randint(CLASSES, (args.batch,), device=device)}


def operations(args):
    """(of a training step, of a forward pass, of the encoder) for one image, on shapes alone."""
    from torch.utils.flop_counter import FlopCounterMode
    with torch.device("meta"), torch.no_grad():
        net, codec = build(args, "meta"), codecs.get("kl", ddconfig=AUTOENCODER)
        with FlopCounterMode(display=False) as counter:
            codec.net.encoder(torch.empty(1, 3, 8 * args.side, 8 * args.side))
    return backbones.train_flops(net), backbones.flops_per_image(net), counter.get_total_flops()


def step_memory(args, name):
    """(bytes before the first step, bytes that two steps of a variant need beyond them at the most); None where they do not fit."""
    own = [sys.executable, __file__, f"--memory_of={name}", *(f"--{key}={getattr(args, key)}" for key in
                                                             ("model", "side", "batch", "threads"))]
    done = subprocess.run(own, capture_output=True, text=True)
    if "out of memory" in done.stderr.lower():
        return None
    if done.returncode:
        raise RuntimeError(f"the process for {name} failed:\n{done.stderr[-2000:]}")
    return tuple(map(int, done.stdout.split()))


def tell_memory(args, device):
    """What `step_memory` reads."""
    codec, options = codecs.get("kl", ddconfig=AUTOENCODER).to(device), VARIANTS[args.memory_of]
    step, batch = training_step(trained(args, device, theirs=options.get("theirs")), codec, **options), examples(args, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = most_memory(device)
    for _ in range(2):
        step(batch)
    print(before, most_memory(device) - before)


def most_memory(device):
    """Bytes that this process held at the most since its peak began."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def chosen_variants(args, device):
    """The variants to time, by name, and why others are not."""
    why = {"tf32": "" if device == "cuda" else "GPU only", "compiled": "" if args.compile else "with --compile"}
    left = {name: why[key] for name, options in VARIANTS.items() for key in why if options.get(key) and why[key]}
    return {name: options for name, options in VARIANTS.items() if name not in left}, left


def fits(step, batch, left, name):
    """Whether the step runs beside what this process holds, which is two networks; `left` learns why not."""
    try:
        step(batch)
    except torch.OutOfMemoryError:
        left[name] = "out of memory"
        torch.cuda.empty_cache()
    return name not in left


def show(times, memory, left, expected):
    """The table."""
    print(f"\n{'':26}{'ms without':>12}{'ms with':>10}{'speed':>8}{'cpu':>7}{'expected':>10}{'GiB without':>13}{'GiB with':>10}"
          f"{'ratio':>7}")
    for row, without, with_it in ROWS:
        reasons = [left[name] for name in (without, with_it) if name in left]
        if reasons:
            print(f"{row:26}{reasons[0]:>12}")
            continue
        before, after = (statistics.median(t[0] for t in times[name]) * 1e3 for name in (without, with_it))
        speed, cpu = (ratio(times, without, with_it, clock) for clock in (0, 1))
        most = [memory[name][1] / 2 ** 30 for name in (without, with_it)]
        print(f"{row:26}{before:12.0f}{after:10.0f}{speed:8.2f}{cpu:7.2f}{expected.get(row, ''):>10}{most[0]:13.2f}{most[1]:10.2f}"
              f"{most[1] / most[0]:7.2f}")
    print("speed, cpu: time without / time with, so above 1 is faster with it; ratio: memory with / memory without, beyond the "
          f"{memory['bf16'][0] / 2 ** 30:.2f} GiB that are there before the first step")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="DiT-S/2", help="a published name")
    parser.add_argument("--side", type=int, default=32, help="of the latents, an eighth of the images'")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="the rows of torch.compile, too")
    parser.add_argument("--memory_of", default="", choices=("", *VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.memory_of:
        tell_memory(args, device)
        return
    variants, left = chosen_variants(args, device)
    memory = {name: step_memory(args, name) for name in variants if name != "float32 again"}
    memory["float32 again"] = memory["float32"]
    left |= {name: "out of memory" for name, most in memory.items() if most is None}

    step, forward, encoder = operations(args)
    codec = codecs.get("kl", ddconfig=AUTOENCODER).to(device)
    ours, theirs = trained(args, device), trained(args, device, theirs=True)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{args.threads} threads"
    count = [sum(weight.numel() for weight in part.weights) / 1e6 for part in (ours, theirs)]
    print(f"{args.model}, {count[0]:.2f} M trained parameters, {args.side} x {args.side} latents, batch {args.batch}, {where}\n"
          f"billions of operations an image: {step / 1e9:.1f} of the step, {encoder / 1e9:.1f} of the encoder")
    error = difference(ours.net, theirs.net, torch.randn(2, 4, args.side, args.side, device=device))
    print(f"diffusers' has {count[1]:.2f} M: an embedding of time and class in every block; largest difference {error:.1e}")
    if error > 1e-3:
        raise RuntimeError("diffusers' DiT is not the same network")
    steps = {name: training_step(theirs if options.get("theirs") else ours, codec, **options)
             for name, options in variants.items() if name not in left}
    batch = examples(args, device)
    steps = {name: step for name, step in steps.items() if device == "cpu" or fits(step, batch, left, name)}
    times = interleaved(steps, (batch,), args.rounds)
    expected = {"A/A": "1", "stored latents": f"{1 + encoder / step:.1f}", "checkpointing": f"{step / (step + forward):.2f}",
                "checkpointing in bf16": f"{step / (step + forward):.2f}"}
    show(times, memory, left, expected)


if __name__ == "__main__":
    main()
