"""How many numbers each part of a model holds, how many of them are trained, and how much a call of the network computes."""

from libs import backbones

# of the networks made of diffusers' models
PARTS = ("unet", "transformer", "class_embedder", "dummy_encoder", "controlnet", "text_encoder")


def parameters(net, codec=None, encoder=None):
    """{component: {'total', 'trainable', 'frozen'}} of a network by its parts, of codec and text encoder, and of 'all' of them."""
    parts = {name: module for name, module in net.named_children() if name in PARTS} or {"network": net}
    parts |= {name: module for name, module in {"codec": codec, "encoder": encoder}.items() if module is not None}
    found = {}
    for name, module in parts.items():
        counts = [(weight.numel(), weight.requires_grad) for weight in module.parameters()]
        total, trainable = sum(n for n, _ in counts), sum(n for n, trained in counts if trained)
        found[name] = {"total": total, "trainable": trainable, "frozen": total - trainable}
    found["all"] = {key: sum(part[key] for part in found.values()) for key in ("total", "trainable", "frozen")}
    return found


def parameters_table(found):
    """The same as text, a line for each component."""
    lines = [f"{'parameters':16s}{'total':>15s}{'trainable':>15s}{'frozen':>15s}"]
    lines += [f"{name:16s}" + "".join(f"{counts[key]:15,d}" for key in ("total", "trainable", "frozen"))
              for name, counts in found.items()]
    return "\n".join(lines)


def operations(net):
    """Operations (2 for a multiply-add) of one image's forward pass; None for a network without a formula."""
    try:
        return backbones.flops_per_image(net)
    except ValueError:
        return None
