"""What one training step keeps on a GPU, counted on the meta device: no memory is used, and full widths take seconds.

Parameters, gradients, AdamW's moments and the moving average, 20 bytes for each weight that is trained; the copies in half precision
that autocast keeps within a pass; and every tensor that the forward pass saves for the backward pass, in the types that autocast
gives them. Not counted: workspaces of kernels, gradients of activations, gaps between blocks, for which `MARGIN` and `FIXED` stand.
"""

import contextlib
from unittest import mock

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

GIB = 2 ** 30
MARGIN, FIXED = 1.07, 1.5  # of all that is counted; GiB of the CUDA context, cuDNN and the pieces of allocated blocks
TRAINED, FROZEN, COPIES = 20, 4, 2  # bytes for each weight
LOW = (F.linear, torch.conv1d, torch.conv2d, F.conv1d, F.conv2d, torch.matmul, torch.bmm, torch.addmm)
HIGH = (F.layer_norm, F.group_norm, torch.layer_norm, torch.group_norm, F.softmax, torch.softmax, torch.Tensor.softmax)


class Attention(torch.autograd.Function):
    """Fused attention as GPUs have it: it saves its inputs, its output and a number for each query and head, no table of weights."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError("only what is saved is counted")


class Autocast(TorchFunctionMode):
    """autocast(float16) of a GPU, on the meta device, which has none; `copies` are the weights in half precision."""

    def __init__(self):
        super().__init__()
        self.copies = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        dtype = torch.float16 if function in LOW else torch.float32 if function in HIGH else None
        if dtype is not None:
            args = [self.cast(each, dtype) for each in args]
            kwargs = {key: self.cast(each, dtype) for key, each in (kwargs or {}).items()}
        return function(*args, **(kwargs or {}))

    def cast(self, value, dtype):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if isinstance(value, torch.nn.Parameter):
            return self.copies.setdefault(id(value), value.to(dtype))
        return value.to(dtype)


class Saved:
    """Bytes of the storages that are saved for the backward pass, each once, those of `without` not at all."""

    def __init__(self, without):
        self.without, self.bytes, self.largest = without, {}, 0

    def keep(self, tensor, into=None):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.without():
            (self.bytes if into is None else into)[storage._cdata] = (storage.nbytes(), storage)  # held, so that no other has its name
        return tensor

    def checkpoint(self, function, *args, use_reentrant=False, **kwargs):
        """torch's checkpoint: the inputs of a block are kept, and of the insides those of one block at a time."""
        for each in args:
            if isinstance(each, torch.Tensor):
                self.keep(each)
        inside = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: self.keep(tensor, inside), lambda tensor: tensor):
            out = function(*args, **kwargs)
        self.largest = max(self.largest, sum(size for size, _ in inside.values()))
        return out

    @property
    def total(self):
        return sum(size for size, _ in self.bytes.values()) + self.largest


def saved_bytes(net, inputs, half):
    """Bytes that one forward pass of a network on the meta device saves."""
    mode = Autocast()
    weights = {weight.untyped_storage()._cdata for weight in [*net.parameters(), *net.buffers()]}
    saved = Saved(lambda: weights | {copy.untyped_storage()._cdata for copy in mode.copies.values()})
    x, t, cond = inputs

    def attention(q, k, v, *_, **__):
        q, k, v = (mode.cast(each, torch.float16) for each in (q, k, v)) if half else (q, k, v)
        return Attention.apply(q, k, v)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attention))
        for module in ("adm", "dit", "uvit"):
            stack.enter_context(mock.patch(f"libs.backbones.{module}.checkpoint", saved.checkpoint))
        if half:
            stack.enter_context(mode)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor))
        net(x, t, **cond)
    return saved.total


def bytes_per_image(net, inputs_of, half):
    """What each further image adds: of two and of three, since broadcasting keeps less of one."""
    two, three = (saved_bytes(net, inputs_of(n), half) for n in (2, 3))
    return three - two


def gib_per_gpu(net, per_image, images, half):
    """GiB of a training step with so many images at once.

    Args:
        net: its weights are counted, by what is trained of them.
        per_image: bytes of `bytes_per_image`.
        images: of one pass on one GPU.
        half: autocast's copies of the weights are kept too.
    """
    trained = sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in net.parameters()) - trained
    static = trained * (TRAINED + COPIES * half) + frozen * (FROZEN + COPIES * half)
    return MARGIN * (static + images * per_image) / GIB + FIXED
