"""Random numbers that belong to single items of a batch: the noise of a held-out image in any batch.

A loss draws noise and times from torch's default generators, one call for a whole batch, so that what an item
meets depends on its place in the batch, on the size of the batch and on the number of processes. Inside
`ItemNoise` each call is made once for every item, with a generator that is a function of (seed, item) alone.
It works below torch's functions, where every draw passes by, also those in networks and codecs.
"""

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Random operations of torch that lack its tag for them.
UNTAGGED = ("random_", "random", "binomial", "_standard_gamma", "_sample_dirichlet", "_fused_dropout")
# Those with a tag that can be made item by item; any other that draws is refused.
BY_ITEM = (*UNTAGGED, "rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "normal", "normal_",
           "uniform", "uniform_", "bernoulli", "bernoulli_", "multinomial", "poisson", "exponential", "exponential_",
           "cauchy", "cauchy_", "geometric", "geometric_", "log_normal", "log_normal_", "native_dropout")
PLACEMENT = ("device", "pin_memory", "memory_format")  # of a whole batch, not of a row of it


class ItemNoise(TorchDispatchMode):
    """While it is entered, every draw from torch's default generators gives each item the numbers of that item.

    A draw whose first dimension is the batch gets row i from the generator of item i, one after the other as
    the calls come. Rows are drawn on the CPU, so that they are the same on every device. Draws with a
    generator of their own are left alone. The default generator of the CPU is used on the way: the caller
    keeps its state.

    Args:
        seed: of the run, 0 or more.
        index: the items of the batch, integers (N,); an item met again meets the same numbers again.
    """

    def __init__(self, seed, index):
        super().__init__()
        self._states = [_first_state(seed, item) for item in index]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if torch.Tag.nondeterministic_seeded not in function.tags and name not in UNTAGGED:
            return function(*args, **kwargs)
        given = dict(zip((argument.name for argument in function._schema.arguments), args)) | kwargs
        if given.get("generator") is not None:
            return function(*args, **kwargs)
        if name not in BY_ITEM:
            return self._unless_it_draws(function, args, kwargs)
        return self._by_item(function, args, kwargs, in_place=name.endswith("_"))

    def _by_item(self, function, args, kwargs, *, in_place):
        device = _device(args, kwargs)
        rows = []
        for number in range(len(self._states)):
            torch.default_generator.set_state(self._states[number])
            row = [self._row(value, number, argument.name, function)
                   for value, argument in zip(args, function._schema.arguments)]
            by_name = {name: self._row(value, number, name, function) for name, value in kwargs.items()
                       if name not in PLACEMENT}
            rows.append(function(*row, **by_name))
            self._states[number] = torch.default_generator.get_state()
        if not rows:
            raise ValueError(f"{function}: the batch of held-out items is empty")
        if isinstance(rows[0], tuple):
            return tuple(torch.stack(each).to(device) for each in zip(*rows))
        drawn = torch.stack(rows).to(device)
        return args[0].copy_(drawn) if in_place else drawn

    def _row(self, value, number, name, function):
        """What one item gets of an argument: its row of a tensor, the shape without the batch; other values as they are."""
        items = len(self._states)
        if name == "size":
            if not value or value[0] != items:
                raise ValueError(_refusal(function, f"of shape {tuple(value)}, in a batch of {items}"))
            return list(value[1:])
        if torch.is_tensor(value) and value.ndim:
            if len(value) != items:
                raise ValueError(_refusal(function, f"of shape {tuple(value.shape)}, in a batch of {items}"))
            return value[number].cpu().clone()
        return value.cpu() if torch.is_tensor(value) else value

    def _unless_it_draws(self, function, args, kwargs):
        """The result of an operation that may draw, such as attention, which does so where it drops out."""
        generators = [torch.default_generator]
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            generators += torch.cuda.default_generators
        before = [generator.get_state() for generator in generators]
        result = function(*args, **kwargs)
        if not all(torch.equal(state, generator.get_state()) for state, generator in zip(before, generators)):
            raise ValueError(_refusal(function, "for a whole batch at once"))
        return result


def _first_state(seed, item):
    """The state of the CPU's generator from which an item's numbers come: a function of (seed, item)."""
    drawn = np.random.SeedSequence([seed, 1, int(item)]).generate_state(1, np.uint64)[0] >> 1
    return torch.Generator().manual_seed(int(drawn)).get_state()


def _device(args, kwargs):
    tensor = next((value for value in (*args, *kwargs.values()) if torch.is_tensor(value) and value.ndim), None)
    return kwargs.get("device") or (torch.get_default_device() if tensor is None else tensor.device)


def _refusal(function, how):
    return (f"the loss of held-out data calls {function}, which draws random numbers {how}: they cannot be given "
            "to single images, so that the loss would depend on the batch. Draw one row for each image, or pass a "
            "generator, or leave it out where the network is in eval mode")
