"""Which times a sampler visits: the published grids, as `Schedule.times` gives them."""
import difflib
import math
from numbers import Integral

import torch

SPACINGS = ("respaced", "stride", "leading", "linspace", "uniform", "euler", "logsnr", "logsnr_fast")
OF_STEPS = SPACINGS[:4]  # choose among the steps of a discrete schedule


class OptionError(ValueError):
    """Options of a sampler that do not go together, or with its schedule.

    options: their names, 'name', 'steps', 'spacing' or one of the sampler's own. ways: changes that would do, each a dict of
    options and values. Who knows where the options come from can then say what to type.
    """

    def __init__(self, message, *options, ways=()):
        super().__init__(message)
        self.options, self.ways = options, tuple(ways)


def describe_choice(names, word="and"):
    """'a', 'a and b', 'a, b and c'."""
    return f" {word} ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def times(schedule, steps, spacing, start, end):
    """See `Schedule.times`."""
    if spacing not in SPACINGS:
        close = difflib.get_close_matches(str(spacing), SPACINGS, 1)
        raise OptionError(f"spacing={spacing!r}; known: {', '.join(SPACINGS)}"
                          + (f". Did you mean {close[0]!r}?" if close else ""), "spacing",
                          ways=(*({"spacing": each} for each in close), {"spacing": ""}))
    if spacing in OF_STEPS:
        if schedule.steps is None:
            raise OptionError(f"times({steps!r}, spacing={spacing!r}): a continuous schedule has no steps to "
                              f"choose from; spacings for it: {', '.join(SPACINGS[4:])}",
                              *(("steps",) if isinstance(steps, str) else ("spacing",)),
                              ways=({"steps": 50},) if isinstance(steps, str) else
                              ({"spacing": ""}, *({"spacing": each} for each in SPACINGS[4:])))
        if (start, end) != (1.0, None):
            raise ValueError(f"start, end do not apply to spacing={spacing!r}: slice the times instead")
        return torch.tensor(_on_steps(schedule.steps, steps, spacing), dtype=torch.float64) / schedule.steps
    _whole(steps, spacing)
    if spacing == "euler":
        return torch.cat([torch.linspace(start, 1e-3, steps, dtype=torch.float64), torch.zeros(1).double()])
    if spacing == "uniform":
        return torch.linspace(start, 1e-3 if end is None else end, steps + 1, dtype=torch.float64)
    end = end or (1 / schedule.steps if schedule.steps else 1e-4)
    orders = fast_orders(steps) if spacing == "logsnr_fast" else [1] * steps
    first, last = schedule.lam(start), schedule.lam(end)
    inner = [(i + j / order) / len(orders) for i, order in enumerate(orders) for j in range(order)][1:]
    inner = [schedule.t_of_lam(first + (last - first) * fraction) for fraction in inner]
    return torch.tensor([start, *inner, end], dtype=torch.float64)


def _on_steps(total, steps, spacing):
    """The n of t = n/N for N = total, falling."""
    if spacing == "leading":
        stride = total // _whole(steps, spacing, total // 2)
        return [k * stride + 2 for k in reversed(range(steps))] + [1]
    if spacing == "linspace":
        _whole(steps, spacing, total - 1)
        return [round(k * (total - 1) / steps) + 1 for k in range(steps, 0, -1)] + [0]
    if spacing == "stride":
        steps = f"ddim{_whole(steps, spacing, total)}"
    return [k + 1 for k in reversed(respaced(total, str(steps)))] + [0]


def respaced(total, spacing):
    """The steps k of 0..N-1, N = total, that guided-diffusion keeps for its text `spacing`, rising."""
    if spacing.startswith("ddim"):
        wanted = _count(spacing[4:], spacing)
        strides = {math.ceil(total / stride): stride for stride in range(total, 0, -1)}   # the smallest stays
        if wanted not in strides:
            below, above = [n for n in strides if n < wanted][-1:], [n for n in strides if n > wanted][:1]
            raise OptionError(f"{spacing!r}: no whole stride keeps {wanted} of {total} steps; "
                              f"nearest: {', '.join(f'ddim{n}' for n in below + above)}", "steps",
                              ways=(*({"steps": n} for n in below + above), *({"steps": f"ddim{n}"} for n in below + above),
                                    {"spacing": ""}))
        return list(range(0, total, strides[wanted]))
    counts = [_count(part, spacing) for part in spacing.split(",")] if spacing else [total]
    kept, first = [], 0
    for i, count in enumerate(counts):
        size = total // len(counts) + (i < total % len(counts))
        if count > size:
            raise OptionError(f"{spacing!r}: section {i + 1} of {total} steps has {size}, fewer than {count}", "steps",
                              ways=({"steps": size},) if len(counts) == 1 else ())
        at = 0.0
        for _ in range(count):      # sums instead of multiplying, to round halves as the published code does
            kept.append(first + round(at))
            at += (size - 1) / max(count - 1, 1)
        first += size
    return kept


def fast_orders(steps):
    """Orders of the singlestep solvers called "fast" (Lu et al. 2022): threes, and a tail of 2+1, 1 or 2."""
    tail = ([2, 1], [1], [2])[steps % 3]
    return [3] * ((steps - sum(tail)) // 3) + tail


def _whole(steps, spacing, most=math.inf):
    if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= most:
        ways = [{"steps": most}] if most < math.inf else [{"steps": 50}]
        raise OptionError(f"steps={steps!r} with spacing={spacing!r}: allowed are whole numbers from 1"
                          + (f" to {most}" if most < math.inf else ""), "steps", "spacing",
                          ways=(*ways, {"spacing": ""}, *([{"spacing": "respaced"}] if isinstance(steps, str) else [])))
    return steps


def _count(text, spacing):
    if not text.strip().isdigit() or int(text) < 1:
        raise OptionError(f"respacing {spacing!r}: allowed are 'ddimN', 'N', 'a,b,c' (numbers from 1), ''", "steps")
    return int(text)
