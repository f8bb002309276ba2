"""One image file -> pixels, at the depth the file has.

Read: PNG, JPEG, BMP, TIFF and PPM (with PGM, PBM), told by their content. Colour becomes grey by ITU-R 601
luma and grey becomes colour by repetition, as `channels` asks; palettes and CMYK are converted; transparency
is laid over black; the EXIF rotation is applied. Greyscale of 16 bits keeps all of them; colour of 16 bits
per channel is read at 8 (Pillow knows no more).
"""

import os
import re
import stat

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "PPM")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".jpe", ".jfif", ".dib", ".ppm", ".pgm",
              ".pbm", ".pnm")
DEEP_ALPHA = "16-bit grey with transparency"  # key of PIL's `info` for files that are read at 8 bits
NO_DEEP_ALPHA = f"{DEEP_ALPHA}; save it without transparency to keep its depth"
DEEP = 65535  # the largest value of a 16-bit grey level


def read_image(path, *, channels=3, window=()):
    """The whole image as float32 (channels, H, W) in [-1, 1]; ValueError that names a file it cannot read."""
    array = pixels(open_image(path, channels=channels, window=window))
    return to_float(np.broadcast_to(array, array.shape[:2] + (channels,)).transpose(2, 0, 1))


def open_image(path, *, channels=3, window=(), measured=None):
    """The decoded, upright image in PIL mode 'RGB' or 'L' (8 bits) or 'F' (grey levels 0 .. 65535).

    Args:
        channels: 1 turns colour into grey; with 3 a grey image stays one plane, for the caller to repeat.
        window: (low, high) in the file's own grey levels, shown as black and white; () is the full range of
            8- and 16-bit files. Signed, 32-bit and floating-point files need one. In colour files it is applied to
            each channel, and lies within 0 .. 255.
        measured: a dict that takes in what the file holds: 'size' (width, height) in pixels and `measure_levels`.
    Raises:
        ValueError: naming the file, for whatever keeps it from being shown truthfully.
    """
    image = decode(path)
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    if not deep:
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            image = _over_black(image)
        colour = image.mode not in ("1", "L")
        if window and colour and not 0 <= window[0] < window[1] <= 255:
            raise ValueError(f"{path}: window={tuple(window)} lies outside 0 .. 255, the levels of colour files, and this "
                             f"one is {image.mode}. Save it as greyscale in the levels of the others, or leave it out")
        image = image.convert("RGB" if colour and channels != 1 else "L")
    if measured is not None:
        measured |= {"size": image.size, **measure_levels(image)}
    if image.mode == "RGB" and window:
        return _window_colour(image, window)
    return _grey_levels(image, path, window) if deep or window else image


def measure_levels(image):
    """The grey levels of a decoded PIL image before any window.

    Returns:
        {'depth': 8, 16, 32 or 'float' (bits of a level), 'low', 'high': the smallest and largest level that occurs in any
        channel, 'grey': whether it has one channel, 'flat': whether each channel has one level only}.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        raw = np.asarray(image)
        low, high = raw.min().item(), raw.max().item()
        flat = low == high
        depth = "float" if image.mode == "F" else 32 if image.mode == "I" else 16
    else:
        ends = image.getextrema()
        ends = ends if isinstance(ends[0], tuple) else (ends,)
        low, high, depth = min(low for low, _ in ends), max(high for _, high in ends), 8
        flat = all(least == most for least, most in ends)
    return {"depth": depth, "low": low, "high": high, "grey": len(image.getbands()) == 1, "flat": flat}


def open_mask(path, values=(), foreground=255):
    """The decoded, upright mask in PIL mode 'L'; colour is refused, as the grey levels are the classes.

    values, foreground: as for `opaque_mask`, which lays transparency over the background.
    """
    return grey_mask(opaque_mask(decode(path, deep_alpha=True), path, values, foreground), path)


def grey_mask(image, path):
    """A mask of `opaque_mask` in PIL mode 'L'; ValueError for colour, and for 16 bits."""
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("P", "RGB", "RGBA", "RGBa", "LA", "La", "PA"):
        planes = np.asarray(image.convert("RGB"))
        if (planes == planes[..., :1]).all():
            return Image.fromarray(planes[..., 0])
        raise ValueError(f"{path}: a mask in colour; declare its colours, set mask_values=((0, 0, 0), ...), or save it "
                         "as greyscale, one grey level per class")
    raise ValueError(f"{path}: a mask of type {image.mode!r}; save it as 8-bit greyscale")


def opaque_mask(image, path, values=(), foreground=255):
    """A decoded mask without its transparency, which belongs to what it means.

    Where the colour says nothing, being the same in every pixel (or in every visible one that of the
    background), the
    transparency is the mask: opaque is foreground. Elsewhere the mask lies over the background.

    Args:
        image: of `decode`. path: of its file, for messages.
        values: what the classes are in the file, the background first, as `masks.MaskCode` has them; () for
            grey levels.
        foreground: the grey level of an opaque pixel where values=() and the transparency is the mask.
    Returns:
        `image` itself where it is opaque, else one of mode 'L', 'RGB' or, where numbers of a palette count,
        'P'.
    Raises:
        ValueError: naming the file, where pixels of a palette's numbers are half transparent.
    """
    if image.mode.startswith("I;16") or image.mode == "I":
        level = image.info.get("transparency")
        array = np.array(image)
        if not isinstance(level, int) or not (array == level).any():
            return image
        array[array == level] = values[0] if values and isinstance(values[0], int) else 0
        return Image.fromarray(array)
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return image
    deep = image.info.get(DEEP_ALPHA)
    rgba = np.asarray((image.convert("LA") if image.mode == "La" else image).convert("RGBA"))
    planes, alpha = rgba[..., :3], rgba[..., 3]
    if (alpha == 255).all() and not deep:
        return image
    colours = [value if isinstance(value, tuple) else (value,) * 3 for value in values]
    colours = colours or [(0, 0, 0), (foreground,) * 3]
    visible = np.unique(planes[alpha > 0].reshape(-1, 3), axis=0)
    constant = not len(visible) or len(visible) == 1 and (
        (planes == planes[:1, :1]).all() or tuple(visible[0]) == colours[0])
    if deep and not (constant and set(np.unique(alpha)) == {0, 255}):
        raise ValueError(f"{path}: {NO_DEEP_ALPHA}")
    numbered = image.mode == "P" and values and isinstance(values[0], int) and not _is_grey(image)
    if constant:
        declared = len(visible) and tuple(map(int, visible[0])) in colours[1:] and len(colours) > 2
        opaque = visible[0] if declared else np.array(colours[1] if len(colours) == 2 else (255,) * 3)
        return _laid(np.broadcast_to(opaque, planes.shape), alpha, colours[0])
    if numbered:
        number = np.array(image)
        if not np.isin(alpha, (0, 255)).all():
            raise ValueError(f"{path}: a mask of palette numbers with pixels that are half transparent: save "
                             "it without transparency")
        # the number says nothing, the transparency does
        if len(values) == 2 and (number[alpha == 255] == values[0]).all():
            number[alpha == 255] = values[1]
        elif (number[alpha == 255] == values[0]).all() and (alpha == 255).any():
            raise ValueError(f"{path}: a mask whose opaque pixels are all of the number {values[0]}, the "
                             "background: save it without transparency")
        number[alpha == 0] = values[0]
        solid = Image.fromarray(number)
        solid.putpalette(image.getpalette("RGB"))
        return solid
    return _laid(planes, alpha, colours[0])


def _is_grey(image):
    palette = np.reshape(image.getpalette("RGB"), (-1, 3))
    return bool((palette == palette[:, :1]).all())


def _laid(planes, alpha, background):
    """Colours (H, W, 3) over a background, mode 'L' where all are grey."""
    share = alpha[..., None] / 255
    mixed = (planes * share + np.array(background) * (1 - share)).round().astype(np.uint8)
    return Image.fromarray(mixed[..., 0] if (mixed == mixed[..., :1]).all() else mixed)


def pixels(image):
    """A PIL image of `open_image` as uint8 (H, W, 1 or 3), or uint16 where it is deep."""
    array = np.asarray(image)
    if image.mode == "F":
        array = array.clip(0, DEEP).round().astype(np.uint16)
    return array if array.ndim == 3 else array[..., None]


def to_float(array):
    """uint8 0 .. 255 or uint16 0 .. 65535 -> float32 in [-1, 1], C-contiguous."""
    half = np.float32(np.iinfo(array.dtype).max / 2)
    out = array.astype(np.float32, order="C")
    out /= half
    out -= 1
    return out


def decode(path, *, deep_alpha=False):
    """The upright PIL image of a file, in whatever mode it has; ValueError that names a file it cannot read.

    deep_alpha: whether 16-bit grey with transparency may be read, at 8 bits, instead of being refused.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: not a regular file")
    if status.st_size == 0:
        raise ValueError(f"{path}: empty (0 bytes)")
    try:
        with Image.open(path, formats=FORMATS) as image:
            _refuse_ambiguous(image, deep_alpha)
            image.load()
            turned = ImageOps.exif_transpose(image)
            inverted = image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(262) == 0
    except Image.UnidentifiedImageError:
        raise ValueError(f'{path}: not a readable {", ".join(FORMATS)} image') from None
    except Image.DecompressionBombError as error:
        count = re.search(r"\((\d+) pixels\)", str(error))
        raise ValueError(f"{path}: "
                         f"{_too_large(f'{count[1]} pixels' if count else 'too many pixels')}") from None
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # decoders raise nearly anything: struct.error, SyntaxError ...
        raise ValueError(f"{path}: truncated or damaged ({type(error).__name__}: {error})") from None
    if inverted:  # TIFF "white is zero", which Pillow applies to 8 bits only
        turned = Image.fromarray(DEEP - np.asarray(turned).astype(np.uint16))
    return turned


class _Refused(Exception):
    """A readable file that would not be shown truthfully."""


def _refuse_ambiguous(image, deep_alpha=False):
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        raise _Refused(_too_large(f"{image.width}x{image.height} pixels"))
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a JPEG photo with previews behind it
        raise _Refused(f"{frames} frames; save each as a file of its own")
    if image.tile and str(image.tile[0][3]).startswith("LA;16"):
        if not deep_alpha:
            raise _Refused(NO_DEEP_ALPHA)
        image.info[DEEP_ALPHA] = True


def _too_large(what):
    return f"{what}; more than PIL.Image.MAX_IMAGE_PIXELS = {Image.MAX_IMAGE_PIXELS}: tile or shrink it"


def _grey_levels(image, path, window):
    """Mode 'F' on the scale 0 .. 65535."""
    raw = np.asarray(image).astype(np.float64)
    if not np.isfinite(raw).all():
        raise ValueError(f"{path}: holds nan or infinite values")
    low, high = window or (0, DEEP)
    if not window and (image.mode == "F" or raw.min() < 0 or raw.max() > DEEP):
        raise ValueError(f"{path}: values from {raw.min():g} to {raw.max():g} have no agreed black and "
                         "white: give window=(low, high), such as "
                         f'--config.dataset.window="({raw.min():g},{raw.max():g})"')
    return Image.fromarray((((raw - low) / (high - low)).clip(0, 1) * DEEP).astype(np.float32))


def _window_colour(image, window):
    """Mode 'RGB' with the window applied to each channel."""
    low, high = window
    table = ((np.arange(256) - low) / (high - low)).clip(0, 1) * 255
    return image.point([round(level) for level in table] * 3)


def _over_black(image):
    rgba = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return flat.convert("L") if image.mode in ("L", "LA", "La") else flat
