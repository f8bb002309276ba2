"""The colour loss and the gradient through a sampler: Med-Art's numbers, finite differences, what is kept for the backward pass."""

import pytest
import torch

from libs.diffusion import Denoiser, colour, guidance, samplers, schedule
from libs.diffusion.colour import colour_loss, sample_through

LINEAR = schedule("linear")


class Net(torch.nn.Module):
    """eps of an image (N, 2, 3, 3), its time and a condition (N, 4), smooth everywhere."""

    def __init__(self, width=6):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = torch.nn.Linear(18 + 1 + 4, width).double(), torch.nn.Linear(width, 18).double()
        self.calls = 0

    def forward(self, x, t, text):
        self.calls += 1
        both = torch.cat([x.flatten(1), t[:, None].double() / 1000, text], 1)
        return x / 2 + 0.1 * self.outer(torch.tanh(self.inner(both))).view_as(x)


def generated(net, x, text, *, steps=4, scale=1.0, **own):
    denoise = guidance.classifier_free(Denoiser(net, LINEAR), {"text": text}, {"text": torch.zeros_like(text)}, scale)
    return sample_through("dpmpp_2m", denoise, x, LINEAR, steps, spacing="linspace", **own)


@pytest.fixture
def problem():
    net, generator = Net(), torch.Generator().manual_seed(1)
    x, real = (torch.randn(3, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return net, x, torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_(), real


def gradients(net, loss, *more):
    return torch.autograd.grad(loss, [*net.parameters(), *more])


def test_the_loss_is_the_published_one():
    made, real = torch.linspace(-1, 1, 12).reshape(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    mean, total = (colour_loss(made, real, reduction=how) for how in ("mean", "sum"))
    assert mean.item() == pytest.approx(0.4077134986, rel=1e-6) and total.item() == pytest.approx(1.2231404959, rel=1e-6)
    assert mean.item() / 20 == pytest.approx(0.0203856749, rel=1e-6)
    assert torch.equal(colour_loss(made, made), torch.zeros(1))
    assert colour_loss(made.bfloat16(), real.bfloat16()).dtype == torch.float32
    both = torch.cat([made, 2 * made])
    assert torch.allclose(colour_loss(both, torch.zeros(2, 3, 5, 7)), torch.stack([total[0], 4 * total[0]]))  # of any size


def test_a_picture_of_one_colour_has_a_gradient():
    """Its deviation is 0, where the root has none; training must survive the picture."""
    flat = torch.zeros(1, 3, 4, 4, requires_grad=True)
    colour_loss(flat, torch.full((1, 3, 4, 4), 0.5)).sum().backward()
    assert flat.grad.isfinite().all() and (flat.grad < 0).all()


def test_wrong_arguments_are_named():
    images = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="reduction='median'.*config.colour.reduction"):
        colour_loss(images, images, reduction="median")
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\) cannot be compared with those of \(1, 3, 4, 4\)"):
        colour_loss(images, images[:1])
    with pytest.raises(ValueError, match="two pixels or more"):
        colour_loss(images[..., :1, :1], images)
    for steps, last in ((4, 5), (4, -1), ("4", 0)):
        with pytest.raises(ValueError, match=f"last={last} of steps={steps!r}"):
            sample_through("dpmpp_2m", None, images, LINEAR, steps, last=last)


@pytest.mark.parametrize("slope, end", [(0.0, 157.41046), (0.5, 8.870066)])
def test_the_solver_is_med_art_s(slope, end):
    times = []

    def net(x, t):
        times.append(t.item())
        return slope * x

    x = torch.ones(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    x0 = sample_through("dpmpp_2m", Denoiser(net, LINEAR), x, LINEAR, 20, spacing="linspace")
    assert x0.item() == pytest.approx(end, rel=1e-6)
    assert torch.tensor(times[:20]).tolist() == pytest.approx([999.0, *range(949, 499, -50), *range(500, 0, -50)])
    assert torch.autograd.grad(x0, x)[0].item() == pytest.approx(end, rel=1e-6)  # the map is linear


@pytest.mark.parametrize("checkpointed", [True, False])
def test_gradients_are_those_of_finite_differences(problem, checkpointed):
    net, x, text, real = problem

    def loss():
        return colour_loss(generated(net, x, text, scale=2.0, checkpointed=checkpointed), real).sum()

    found = gradients(net, loss(), text)
    assert net.calls == (8 if checkpointed else 4)  # each step once more in the backward pass
    for parameter, gradient in zip([*net.parameters(), text], found):
        direction = torch.randn_like(parameter)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-5)
                ends.append(loss())
                parameter.sub_(direction, alpha=sign * 1e-5)
        assert ((ends[0] - ends[1]) / 2e-5).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-6, abs=1e-10)
        assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize("last", [1, 2, 3])
def test_truncation_takes_the_earlier_steps_as_given(problem, last):
    net, x, text, real = problem
    found = gradients(net, colour_loss(generated(net, x.requires_grad_(), text, last=last), real).sum(), text)

    def detached(y, t, **cond):  # the same chain, with the estimates of its first steps taken as given
        estimate, number = denoise(y, t, **cond), len(seen)
        seen.append(t)
        return estimate if number >= 4 - last else type(estimate)(estimate.x0.detach(), estimate.eps.detach())

    denoise, seen = Denoiser(lambda y, t: net(y, t, text), LINEAR), []
    made = samplers.sample_dpmpp_2m(detached, x.detach(), LINEAR.times(4, spacing="linspace"), LINEAR)
    expected = gradients(net, colour_loss(made, real).sum(), text)
    whole = gradients(net, colour_loss(generated(net, x, text), real).sum(), text)
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(found, expected))
    assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in zip(found, whole))


def test_images_of_a_batch_do_not_know_each_other(problem):
    net, x, text, real = problem
    together = gradients(net, colour_loss(generated(net, x, text), real).sum(), text)
    singly = [gradients(net, colour_loss(generated(net, x[i:i + 1], text[i:i + 1]), real[i:i + 1]).sum(), text) for i in range(3)]
    assert all(torch.allclose(a, sum(parts), rtol=1e-10) for a, parts in zip(together, zip(*singly)))


def test_what_is_drawn_in_a_step_is_drawn_alike_again(problem):
    net, x, text, real = problem

    def noisy(y, t, text):
        return net(y, t, torch.nn.functional.dropout(text))

    found = []
    for checkpointed in (True, False):
        torch.manual_seed(3)
        made = generated(noisy, x, text, checkpointed=checkpointed)
        found.append(gradients(net, colour_loss(made, real).sum(), text))
    assert all(torch.equal(a, b) for a, b in zip(*found))


def kept_bytes(steps, **own):
    """Bytes of all tensors that are kept for a backward pass through so many steps of a wide network."""
    total, text = 0, torch.zeros(3, 4, dtype=torch.float64)

    def pack(tensor):
        nonlocal total
        total += tensor.nbytes
        return tensor

    net = Net(width=1000)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        generated(net, torch.ones(3, 2, 3, 3, dtype=torch.float64), text, steps=steps, **own)
    return total


def test_a_checkpointed_step_keeps_its_image_alone():
    image, hidden = 3 * 2 * 3 * 3 * 8, 3 * 1000 * 8
    assert (kept_bytes(9) - kept_bytes(5)) / 4 <= image
    assert (kept_bytes(9, checkpointed=False) - kept_bytes(5, checkpointed=False)) / 4 >= hidden
    assert kept_bytes(9, checkpointed=False, last=2) == kept_bytes(5, checkpointed=False, last=2)


def test_without_gradients_nothing_is_done_twice(problem):
    net, x, text, _ = problem
    with torch.no_grad():
        made = generated(net, x, text)
    assert net.calls == 4 and not made.requires_grad
    assert torch.allclose(made, generated(net, x, text))


def test_statistics_are_those_of_each_image():
    images = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mean, deviation = colour.statistics(images)
    assert torch.allclose(mean, images.mean((2, 3))) and torch.allclose(deviation ** 2, images.var((2, 3), unbiased=True))
