"""Drawing of phantoms: dermoscopy-like lesions whose class, mask, attributes and caption are known.

Image i is drawn from (seed, i) alone, as continuous functions of position on the square [-1, 1]^2, so every
resolution shows the same scene. Pigment absorbs light as in the Beer-Lambert law: a pixel is
skin * exp(-density * absorption). The class decides a structure (below), drawn in whichever attributes the
lesion has; attributes are drawn from odds that differ between the classes and overlap, so neither follows
from the other.

    nevus           even pigment, a little darker in the middle, with a faint network
    melanoma        several colours: an off-centre blue-black area and a blue-grey veil
    angioma         lacunae: a cluster of round pools of the lesion's colour
    dermatofibroma  a white, scar-like centre inside a ring of pigment
"""
import math
from typing import NamedTuple

import numpy as np

from .base import one_of

VERSION = 1  # raise it when a scene changes: it is part of the data set's fingerprint
CLASSES = ("nevus", "melanoma", "angioma", "dermatofibroma")
ATTRIBUTES = {"size": ("small", "medium", "large"),
              "shape": ("round", "oval", "irregular"),
              "colour": ("light brown", "dark brown", "black", "red", "purple"),
              "border": ("sharp", "blurred", "ragged"),
              "texture": ("smooth", "mottled", "dotted"),
              "skin": ("light", "tan", "brown")}
ODDS = {  # per class and attribute, in the order of ATTRIBUTES
    "nevus": {"size": (.40, .45, .15), "shape": (.60, .30, .10), "colour": (.50, .30, .06, .10, .04),
              "border": (.60, .30, .10), "texture": (.60, .15, .25), "skin": (.4, .35, .25)},
    "melanoma": {"size": (.10, .35, .55), "shape": (.10, .20, .70), "colour": (.10, .45, .25, .12, .08),
                 "border": (.20, .20, .60), "texture": (.20, .60, .20), "skin": (.5, .30, .20)},
    "angioma": {"size": (.40, .40, .20), "shape": (.50, .30, .20), "colour": (.03, .05, .07, .60, .25),
                "border": (.65, .20, .15), "texture": (.65, .20, .15), "skin": (.4, .35, .25)},
    "dermatofibroma": {"size": (.25, .50, .25), "shape": (.60, .30, .10), "colour": (.35, .35, .05, .15, .10),
                       "border": (.35, .50, .15), "texture": (.60, .20, .20), "skin": (.3, .35, .35)}}
RADIUS = {"small": (.28, .34), "medium": (.43, .49), "large": (.58, .65)}  # of the disc of equal area
ASPECT = {"round": (1., 1.1), "oval": (1.5, 1.8), "irregular": (1., 1.25)}
SKIN = {"light": (238, 207, 190), "tan": (216, 174, 146), "brown": (178, 134, 106)}
TRANSMISSION = {"light brown": (.74, .56, .40), "dark brown": (.40, .24, .15), "black": (.15, .13, .15),
                "red": (.86, .27, .28), "purple": (.50, .24, .52)}
PALE, DARK, VEIL = (246, 228, 218), (38, 36, 50), (124, 142, 172)
DOTS = {"light brown": 1.3, "dark brown": -.7, "black": -.7, "red": .9, "purple": -.6}  # added density


class Phantom(NamedTuple):
    """A drawn lesion: image uint8 (H, W, 3), mask uint8 (H, W) in {0, 255}, its words and its class index."""
    image: np.ndarray
    mask: np.ndarray
    attributes: dict
    caption: str
    label: int


def describe(seed, index, *, ask=None):
    """(class, attributes) of image `index`; `ask` fixes some: {'class': 'angioma', 'colour': 'dark brown'}.

    An attribute that is asked for leaves the others as they were; another class draws them from its own odds.
    Raises ValueError for an unknown key or word.
    """
    ask, known = dict(ask or {}), {"class": CLASSES, **ATTRIBUTES}
    for key, word in ask.items():
        one_of(f'asked {one_of("asked attribute", key, known)}', word, known[key])
    name = ask.pop("class", CLASSES[index % len(CLASSES)])
    chance = np.random.default_rng([seed, index, 0]).random(len(ATTRIBUTES))
    attributes = {}
    for u, (key, words) in zip(chance, ATTRIBUTES.items()):
        at = min(np.searchsorted(np.cumsum(ODDS[name][key]), u, side="right"), len(words) - 1)
        attributes[key] = ask.get(key, words[at])
    return name, attributes


def caption(attributes, noun="lesion", rng=None):
    """The sentence of all attributes; `noun` is the class, or 'lesion' where the text shall not tell it.

    A numpy Generator `rng` words it freely, as people do: the adjectives in any order, size, border, texture and skin each
    left out now and then.
    """
    adjectives, clauses = ["size", "shape", "colour"], ["{border} border", "{texture} texture"]
    place = " on {skin} skin"
    if rng is not None:
        adjectives = [adjectives[i] for i in rng.permutation(3)]
        adjectives = [key for key in adjectives if key != "size" or rng.random() < .8]
        clauses = [clause for clause in clauses if rng.random() < .5]
        place = place if rng.random() < .5 else ""
    words = " ".join(f"{{{key}}}" for key in adjectives)
    words = f"a {words} {{noun}}" + (" with a " + " and ".join(clauses) if clauses else "") + place
    text = words.format(noun=noun, **attributes)
    return text.replace("a oval", "an oval").replace("a irregular", "an irregular")


def _smooth(x):
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


class _Canvas:
    """Pixel centres of [-1, 1]^2; waves and spots are averaged over a pixel: detail fades, not aliases."""

    def __init__(self, side):
        self.pixel = 2 / side
        self.x = ((np.arange(side) + .5) * self.pixel - 1).astype(np.float32)

    def waves(self, k, angle, phase):
        """Sum of plane waves cos(k . (x, y) + phase), scaled to unit variance; as one matrix product."""
        kx, ky = k * np.cos(angle), k * np.sin(angle)
        fade = np.sinc(kx * self.pixel / (2 * math.pi)) * np.sinc(ky * self.pixel / (2 * math.pi))
        across = np.outer(kx, self.x) + phase[:, None]
        down = np.outer(self.x, ky)
        left = np.concatenate([np.cos(down) * fade, -np.sin(down) * fade], 1).astype(np.float32)
        right = np.concatenate([np.cos(across), np.sin(across)], 0).astype(np.float32)
        return left @ right * math.sqrt(2 / len(k))

    def spots(self, centres, sigma):
        """Sum of Gaussian spots of height 1 at centres (n, 2); separable, so one matrix product."""
        wide = math.sqrt(sigma ** 2 + self.pixel ** 2 / 12)
        across = np.exp(-.5 * ((self.x - centres[:, :1]) / wide) ** 2)
        down = np.exp(-.5 * ((self.x - centres[:, 1:]) / wide) ** 2)
        return ((sigma / wide) ** 2 * down.T @ across).astype(np.float32)


def _outline(attributes, rng):
    """(radius, harmonics, stretch (2, 2), centre): the border r(theta) = radius * Re sum_m c_m e^(i m theta).

    The disc of equal area has a radius inside RADIUS: area = pi radius^2 (1 + sum |c_m|^2 / 2), in which the
    area-preserving stretch changes nothing.
    """
    u, phases, heights = rng.random(5), rng.random(15), rng.uniform(.8, 1.2, 15)
    size = np.array([0, 0, .02, .02, .015, .01, .01] + 8 * [0])
    if attributes["shape"] == "irregular":
        size[2:6] = .13, .15, .09, .06
    if attributes["border"] == "ragged":
        size[7:15] = .035
    harmonics = size * heights * np.exp(2j * math.pi * phases)
    harmonics[0] = 1
    low, high = RADIUS[attributes["size"]]
    radius = (low + (high - low) * u[0]) / math.sqrt(1 + .5 * np.sum(np.abs(harmonics[1:]) ** 2))
    low, high = ASPECT[attributes["shape"]]
    root, turn = math.sqrt(low + (high - low) * u[1]), math.pi * u[2]
    axes = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    stretch = axes.T @ np.diag([root, 1 / root]) @ axes
    theta = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    r = radius * np.real(np.exp(1j * np.outer(theta, np.arange(15))) @ harmonics)
    points = stretch @ np.stack([r * np.cos(theta), r * np.sin(theta)])
    low, high = points.min(1), points.max(1)
    room = np.clip(.94 - (high - low) / 2, 0, .15)
    return radius, harmonics, stretch, room * (2 * u[3:] - 1) - (low + high) / 2


def _sunflower(n, rng, jitter):
    """n points spread over the unit disc: golden-angle spiral, shaken by `jitter`, turned at random."""
    at = np.arange(n)
    r, angle = np.sqrt((at + .5) / n), at * math.pi * (3 - math.sqrt(5)) + 2 * math.pi * rng.random()
    return np.stack([r * np.cos(angle), r * np.sin(angle)], 1) + rng.uniform(-jitter, jitter, (n, 2))


def _border(canvas, radius, harmonics, stretch, centre):
    """(distance to the border, negative outside; distance from the centre over the radius), each (H, W)."""
    unstretch = np.linalg.inv(stretch).astype(np.float32)
    x, y = canvas.x - np.float32(centre[0]), canvas.x[:, None] - np.float32(centre[1])
    z = unstretch[0, 0] * x + unstretch[0, 1] * y + 1j * (unstretch[1, 0] * x + unstretch[1, 1] * y)
    away = np.abs(z)
    z /= np.maximum(away, 1e-6)
    r, slope = np.zeros_like(z), np.zeros_like(z)
    for m in range(len(harmonics) - 1, -1, -1):  # Horner: r(theta), its derivative, at each pixel
        r = r * z + np.complex64(harmonics[m])
        slope = slope * z + np.complex64(1j * m * harmonics[m])
    inside = (radius * r.real - away) / np.sqrt(1 + (slope.real / r.real) ** 2)
    return inside, away / radius


def _pigment(canvas, name, attributes, rng, depth, radius, stretch, centre):
    """(density (H, W), [(amount (H, W), tone)]): the pigment of the lesion's colour, and what covers it."""
    def waves(n, low, high):
        return canvas.waves(rng.uniform(low, high, n) / radius, rng.uniform(0, 7, n), rng.uniform(0, 7, n))
    mottle, patchy = np.clip(waves(12, 3, 5.5), -1.5, 1.5), waves(8, 3, 6)
    specks = _sunflower(17, rng, .1) * .85 * radius @ stretch + centre
    pools = _sunflower(11, rng, .06) * .88 * radius @ stretch + centre
    turn, lines = 2 * math.pi * rng.random(2)

    density, over = np.ones_like(depth), []
    if attributes["texture"] == "mottled":
        density += .38 * mottle
    elif attributes["texture"] == "dotted":
        density += DOTS[attributes["colour"]] * np.minimum(1.4 * canvas.spots(specks, .085 * radius), 1)
    if name == "nevus":
        network = canvas.waves(np.full(3, 46.), lines + np.arange(3) * math.pi / 3, np.zeros(3))
        density *= 1.15 - .3 * np.minimum(depth, 1) ** 2 + .08 * network
    elif name == "melanoma":
        where = .52 * radius * np.array([[math.cos(turn), math.sin(turn)]]) @ stretch
        dark = _smooth(1.5 * canvas.spots(centre + where, .40 * radius) + .35 * patchy - .42)
        veil = _smooth(1.5 * canvas.spots(centre - where, .34 * radius) - .35 * patchy - .38)
        over = [(.9 * dark, DARK), (.75 * veil, VEIL)]
    elif name == "angioma":
        density *= .5 + .9 * _smooth(1.5 * canvas.spots(pools, .155 * radius) - .25)
    elif name == "dermatofibroma":
        density *= 1.1
        over = [(.85 * _smooth((.70 - depth + .06 * patchy) / .45), PALE)]
    return np.clip(density, .3, 2.2), over


def _skin(canvas, rng):
    """(absorption (3, H, W), light (H, W)) of bare skin: uneven blood, furrows, and the lamp's vignette."""
    tilt, course = 2 * math.pi * rng.random(2)
    blood = canvas.waves(rng.uniform(2, 6, 6), rng.uniform(0, 7, 6), rng.uniform(0, 7, 6))
    furrows = course + rng.choice([0, 1.2], 10) + rng.normal(0, .1, 10)
    furrows = canvas.waves(rng.uniform(40, 75, 10), furrows, rng.uniform(0, 7, 10))
    x, y = canvas.x, canvas.x[:, None]
    light = 1.03 - .075 * (x ** 2 + y ** 2) + .03 * (math.cos(tilt) * x + math.sin(tilt) * y)
    return .03 * blood * _rgb((.4, 1, .8)) + .018 * furrows, light


def _hairs(canvas, rng):
    """Darkness (H, W) of thin curved hairs: none on nine images out of ten."""
    shown, bends = rng.random() < .1, rng.random((3, 3))
    dark = np.zeros((len(canvas.x),) * 2, np.float32)
    if shown:
        wide = math.sqrt(.011 ** 2 + (canvas.pixel / 2) ** 2)
        for angle, offset, bend in bends:
            c, s = math.cos(math.pi * angle), math.sin(math.pi * angle)
            along = c * canvas.x + s * canvas.x[:, None]
            away = c * canvas.x[:, None] - s * canvas.x - (1.6 * offset - .8) - (bend - .5) * .6 * along ** 2
            dark = np.maximum(dark, .75 * .011 / wide * np.exp(-.5 * (away / wide) ** 2))
    return dark


def _rgb(tone):
    return np.array(tone, np.float32)[:, None, None]


def draw(seed, index, resolution, *, ask=None):
    """Phantom `index` of `seed`, resolution x resolution pixels; the scene does not depend on the resolution.

    ask: {'class': name, attribute: word}, each optional, as in `describe`: asked for another colour, the same
    lesion comes in that colour.
    """
    if resolution < 8:
        raise ValueError(f"phantoms: a resolution of at least 8 pixels is needed, not {resolution}")
    name, attributes = describe(seed, index, ask=ask)
    finer = 2 if resolution <= 64 else 1
    canvas = _Canvas(resolution * finer)
    rng = np.random.default_rng([seed, index, 1])
    outline = radius, _, stretch, centre = _outline(attributes, rng)
    inside, depth = _border(canvas, *outline)
    density, over = _pigment(canvas, name, attributes, rng, depth, radius, stretch, centre)
    absorbed, light = _skin(canvas, rng)

    soft = .42 * radius if attributes["border"] == "blurred" else .05
    cover = _smooth(.5 + inside / math.hypot(soft, 1.5 * canvas.pixel))
    halo = _smooth(1 + inside / .3) * (1 - cover)  # reddened skin around the lesion
    absorbed += .07 * halo * _rgb((.2, 1, .8))
    absorbed -= density * cover * np.log(_rgb(TRANSMISSION[attributes["colour"]]))
    image = _rgb(SKIN[attributes["skin"]]) * np.exp(-absorbed)
    for amount, tone in over:
        image += amount * cover * (_rgb(tone) - image)
    image *= light * (1 - _hairs(canvas, rng))

    def reduce(a):
        return a.reshape(*a.shape[:-2], resolution, finer, resolution, finer).mean((-3, -1))
    image = np.ascontiguousarray(np.clip(reduce(image) + .5, 0, 255).astype(np.uint8).transpose(1, 2, 0))
    mask = np.where(reduce(inside) > 0, 255, 0).astype(np.uint8)
    return Phantom(image, mask, attributes, caption(attributes, name), CLASSES.index(name))
