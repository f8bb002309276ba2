"""Pictures that travel inside an HTML page: images as base64 PNG, curves as SVG in the page's own colours.

A page that shows curves defines the CSS variables --ink, --rule, --accent, --second and --sans: one curve
then serves light, dark and paper.
"""

import base64
import io
import re

import numpy as np
from markupsafe import Markup
from PIL import Image

_COLOURS = {"--ink": "#000001", "--rule": "#000002", "--accent": "#000003", "--second": "#000004"}
_RAMP = "#0001"  # and two digits: the place between --accent and --second


def png(image, *, limit=192):
    """A data URI of a uint8 image (H, W), (H, W, 1) or (H, W, 3), longer sides reduced to `limit` pixels."""
    image = Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image)
    image.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def ramp(i, n):
    """The CSS colour of the i-th of n lines that are drawn as a `family`: from --accent, the first, to --second, the last."""
    return _mixed(_share(i, n))


def curves(lines, *, dots=(), family=(), log=False, zero=False):
    """Lines over training steps as one SVG.

    Args:
        lines: [(steps (K,), values (K,))], many noisy values each: drawn faint, under their running mean over
            1/30 of the points.
        dots: the same, few values each: drawn as they are, in the second colour, or in that of text beside a family.
        family: the same, lines that belong together, such as those of several noise levels: drawn in the colours of `ramp`.
        log: logarithmic where the values are positive and differ by more than a factor of 8.
        zero: let the axis begin at 0.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "curves", "font.size": 11}):
        figure = Figure(figsize=(5, 2.8), dpi=72)
        axes = figure.add_axes((0.165, 0.11, 0.815, 0.85))
        for steps, values in (_thinned(*line) for line in lines):
            axes.plot(steps, values, color=_COLOURS["--accent"], alpha=0.3, linewidth=0.8)
            axes.plot(steps, _running_mean(values), color=_COLOURS["--accent"], linewidth=1.6)
        for i, (steps, values) in enumerate(family):
            axes.plot(steps, values, color=f"{_RAMP}{_share(i, len(family)):02x}", linewidth=1.1, marker="o", markersize=2.5)
        for steps, values in dots:
            axes.plot(steps, values, color=_COLOURS["--ink" if family else "--second"], linewidth=1.2, marker="o", markersize=3.5)
        everything = np.concatenate([values for _, values in [*lines, *dots, *family]])
        if log and everything.min() > 0 and everything.max() > 8 * everything.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        if zero:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1000:g}k" if n > 999 else f"{n:g}"))
        axes.grid(axis="y", color=_COLOURS["--rule"], linewidth=0.7)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_COLOURS["--rule"])
        axes.tick_params(color=_COLOURS["--rule"], labelcolor=_COLOURS["--ink"], left=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    return _for_page(file.getvalue())


def _share(i, n):
    """Per cent of the way from the first of n to the last."""
    return round(100 * i / max(1, n - 1))


def _mixed(share):
    return f"color-mix(in oklch, var(--second) {share}%, var(--accent))"


def _thinned(steps, values, most=600):
    """Means of runs of neighbouring points, so that a long run's page stays small."""
    size = -(-len(steps) // most)
    starts = np.arange(0, len(steps), size)
    counts = np.diff([*starts, len(steps)])
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _running_mean(values):
    window = np.ones(max(1, len(values) // 30))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _for_page(svg):
    """The <svg> element alone, without what only a file needs and ids that two figures would share."""
    head, opening = r'.*?<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">'
    svg = re.sub(head, opening, svg, count=1, flags=re.S)
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'font-family: [^;"]*', "font-family: var(--sans)", svg)
    for variable, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(f"{_RAMP}([0-9a-f]{{2}})", lambda found: _mixed(int(found[1], 16)), svg)
    return Markup(svg)
