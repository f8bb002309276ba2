"""What does the loss of colours cost: memory and time of a training step with it, by what is computed again in the backward pass.

    python benchmarks/colour_loss.py                # a small network at 128 px, about 3 minutes on two cores
    python benchmarks/colour_loss.py --published    # on a GPU: PixArt-alpha's XL/2, T5-XXL, Stable Diffusion's autoencoder, 512 px

A step of train_pixart_lora.py with LoRA on transformer and T5: the denoising loss, and but for the first variant images through 20
steps of DPM-Solver++ with guidance, the decoder, and the distance of their colours; one backward pass, the engine's update. Weights
are drawn, which changes neither time nor memory. Each variant has a process of its own:

    saved   what the graph holds at the end of the forward pass beside the weights, in tensors that nothing computes again
    peak    the most that the step needs above the process at rest: of resident memory, on a GPU of torch's allocator
    time    median over rounds; cpu is that of all threads, which a busy machine changes less
"""

import argparse
import contextlib
import ctypes
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from configs.kvasir512_pixart_lora import get_config  # noqa: E402
from libs import codecs, diffusion, pipeline  # noqa: E402
from libs.backbones import pixart  # noqa: E402
from libs.engine import optim  # noqa: E402
from libs.pipeline import colour  # noqa: E402

# PixArt-alpha XL/2 at 512 pixels with T5-XXL, and a small one whose parts stand in about the same relation
PUBLISHED = dict(side=64, layers=28, heads=16, head_dim=72, window=120, ch=128,
                 t5=dict(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=32128))
SMALLER = dict(side=16, layers=12, heads=6, head_dim=24, window=120, ch=32,
               t5=dict(d_model=256, d_kv=32, d_ff=640, num_layers=4, num_heads=8, vocab_size=1000))
NOTHING = dict(checkpoint_steps=False, checkpoint_decoder=False)
VARIANTS = {  # name: (config.colour, the network's blocks checkpointed, images); None: no loss of colours
    "denoising alone": (None, False, 1),
    "nothing computed again": (NOTHING, False, 1),
    "blocks of the network": (NOTHING, True, 1),
    "steps": (dict(checkpoint_decoder=False), False, 1),
    "steps, decoder": ({}, False, 1),
    "steps, decoder, blocks": ({}, True, 1),
    "steps, decoder, last 5": (dict(last=5), False, 1),
    "denoising alone, batch 2": (None, False, 2),
    "steps, decoder, batch 2": ({}, False, 2),
}


def build(sizes, blocks, device, dtype):
    """(network with LoRA, its sampler) with drawn weights."""
    from diffusers import PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        transformer = PixArtTransformer2DModel(
            sample_size=sizes["side"], num_layers=sizes["layers"], num_attention_heads=sizes["heads"],
            attention_head_dim=sizes["head_dim"], cross_attention_dim=sizes["heads"] * sizes["head_dim"], out_channels=8,
            caption_channels=sizes["t5"]["d_model"], use_additional_conditions=False)
        text = T5EncoderModel(T5Config(**sizes["t5"], feed_forward_proj="gated-gelu", tie_word_embeddings=False))
    torch.set_default_dtype(torch.float32)
    pixart.add_lora(transformer, 8, 8.0, pixart.TARGETS["medart"])
    pixart.add_lora(text, 8, 8.0, pixart.TEXT_TARGETS["published"])
    if blocks:
        transformer.enable_gradient_checkpointing()
        text.activation_checkpointing_enable({"use_reentrant": False})
    net = pixart.PixArt(transformer, text, lora_rank=8).to(device).train()
    codec = codecs.get("kl", ddconfig=dict(double_z=True, z_channels=4, resolution=8 * sizes["side"], in_channels=3, out_ch=3,
                                           ch=sizes["ch"], ch_mult=[1, 2, 4, 4], num_res_blocks=2, attn_resolutions=[],
                                           dropout=0.0)).to(device)
    config = get_config()
    config.nnet.sample_size = sizes["side"]
    empty = torch.zeros(sizes["window"], dtype=torch.int64)
    empty[0] = 1
    return net, pipeline.Pipeline(net, config, codec=codec, schedule=diffusion.schedule("linear"), null={"text": empty})


def training_step(net, sampler, options, bf16):
    """A step of train_pixart_lora.py; returns (loss of a batch, what ends the step)."""
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    update = optim.Update(optim.make(weights, name="adamw", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01), grad_clip=1.0)
    config = sampler.config.colour
    config.update(options or {})

    def forward(batch):
        with torch.autocast(sampler.device.type, torch.bfloat16, enabled=bf16):
            t = sampler.schedule.sample_times(len(batch["mean"]), device=sampler.device)
            loss = diffusion.loss.simple(diffusion.Denoiser(net, sampler.schedule), batch["mean"], t, text=batch["text"]).mean()
            if options is None:
                return loss
            return colour.add(loss, colour.distance(sampler, batch, config, net=net), config, "benchmark")[0]

    def end(loss):
        loss.backward()
        update(loss.detach())
        if loss.is_cuda:
            torch.cuda.synchronize()
    return forward, end


def measure(args, sizes, device):
    """What one variant needs, as JSON for the process that asked."""
    options, blocks, n = VARIANTS[args.only]
    bf16 = device == "cuda"
    net, sampler = build(sizes, blocks, device, torch.bfloat16 if bf16 else torch.float32)
    forward, end = training_step(net, sampler, options, bf16)
    pixels = 8 * sizes["side"]
    batch = {"mean": torch.randn(n, *sampler.shape, device=device), "image": torch.zeros(n, 3, pixels, pixels, device=device),
             "text": torch.randint(2, sizes["t5"]["vocab_size"], (n, sizes["window"]), device=device)}
    give_back_all(True)
    at_rest, times = in_use(device), []
    end(forward(batch))
    peak = torch.cuda.max_memory_allocated() if bf16 else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    give_back_all(False)
    for _ in range(args.rounds):
        begun = time.perf_counter(), time.process_time()
        end(forward(batch))
        times.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    wall, cpu = (statistics.median(each) for each in zip(*times))
    print(json.dumps({"peak": peak - at_rest, "wall": wall, "cpu": cpu, "saved": saved_bytes(forward, net, sampler, batch)}))


def give_back_all(on):
    """Let glibc return each tensor's memory at once, so that resident memory is that of living tensors: left to itself it grew by a
    forward pass for each step although nothing of it was kept. Slower, therefore off where time is taken."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 14 if on else 1 << 25)  # M_MMAP_THRESHOLD
        mallopt(-4, 1 << 20)  # M_MMAP_MAX


def in_use(device):
    """Bytes."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def saved_bytes(forward, net, sampler, batch):
    """Bytes of the distinct tensors that the graph of a loss holds, weights apart."""
    weights = {weight.untyped_storage().data_ptr() for part in (net, sampler.codec) for weight in part.parameters()}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward(batch)
    return sum(held.values()) if loss.requires_grad else 0


def asked(args, name):
    """What `measure` says of a variant in a process of its own; None where memory does not suffice."""
    own = [sys.executable, __file__, f"--only={name}", f"--rounds={args.rounds}", f"--threads={args.threads}",
           *["--published"] * args.published]
    done = subprocess.run(own, capture_output=True, text=True)
    if done.returncode and "OutOfMemoryError" not in done.stderr and done.returncode != -9:
        raise RuntimeError(done.stderr[-3000:])
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", action="store_true", help="the published sizes, in bf16; for a GPU of 80 GB")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="measure this variant alone, in this process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes, device = PUBLISHED if args.published else SMALLER, "cuda" if torch.cuda.is_available() else "cpu"
    if args.only:
        return measure(args, sizes, device)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{args.threads} threads"
    print(f"PixArt of {sizes['layers']} blocks of width {sizes['heads'] * sizes['head_dim']} at {8 * sizes['side']} px, LoRA of "
          f"rank 8, 20 steps, guidance 4.5, {'bf16' if device == 'cuda' else 'float32'}, {where}")
    print(f"\n{'':26}{'saved MiB':>10}{'peak MiB':>10}{'wall s':>9}{'cpu s':>9}{'ratio':>9}{'1 in 500':>10}")
    found, clock = {}, "wall" if device == "cuda" else "cpu"
    for name, (options, _, n) in VARIANTS.items():
        one = found[name] = asked(args, name)
        if one is None:
            print(f"{name:26}{'out of memory':>20}")
            continue
        plain = found["denoising alone" + ", batch 2" * (n == 2)]
        ratio = one[clock] / plain[clock]
        more = "" if options is None else f"{(ratio - 1) / 5:+8.1f} %"
        memory = "".join(f"{one[key] / 2 ** 20:10.0f}" for key in ("saved", "peak"))
        print(f"{name:26}{memory}{one['wall']:9.2f}{one['cpu']:9.2f}{ratio:9.1f}{more}", flush=True)
    print(f"\nratio: of {clock} time, to denoising alone; 1 in 500: how much longer a training is with the loss in 1 step of 500")


if __name__ == "__main__":
    main()
