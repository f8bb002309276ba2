"""One image file -> pixels, at the depth the file has.

Read: PNG, JPEG, BMP and TIFF, told by their content. Colour becomes grey by ITU-R 601 luma and grey becomes
colour by repetition, as `channels` asks; palettes and CMYK are converted; transparency is laid over black;
the EXIF rotation is applied. Greyscale of 16 bits keeps all of them; colour of 16 bits per channel is read at
8 (Pillow knows no more).
"""

import os
import stat

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
DEEP = 65535  # the largest value of a 16-bit grey level


def read_image(path, *, channels=3, window=()):
    """The whole image as float32 (channels, H, W) in [-1, 1]; ValueError that names a file it cannot read."""
    array = pixels(open_image(path, channels=channels, window=window))
    return to_float(np.broadcast_to(array, array.shape[:2] + (channels,)).transpose(2, 0, 1))


def open_image(path, *, channels=3, window=()):
    """The decoded, upright image in PIL mode 'RGB' or 'L' (8 bits) or 'F' (grey levels 0 .. 65535).

    Args:
        channels: 1 turns colour into grey; with 3 a grey image stays one plane, for the caller to repeat.
        window: (low, high) in the file's own grey levels, shown as black and white; () is the full range of
            8- and 16-bit files. Signed, 32-bit and floating-point files need one.
    Raises:
        ValueError: naming the file, for whatever keeps it from being shown truthfully.
    """
    image = decode(path)
    if image.mode in ("I", "F") or image.mode.startswith("I;16") or window:
        return _grey_levels(image, path, window)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = _over_black(image)
    grey = image.mode in ("1", "L") or channels == 1
    return image.convert("L" if grey else "RGB")


def open_mask(path):
    """The decoded, upright mask in PIL mode 'L'; colour is refused, as the grey levels are the classes."""
    image = decode(path)
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("P", "RGB", "RGBA", "LA", "PA"):
        planes = np.asarray(image.convert("RGB"))
        if (planes == planes[..., :1]).all():
            return Image.fromarray(planes[..., 0])
        raise ValueError(f"{path}: a mask in colour; declare its colours, set mask_values=((0, 0, 0), ...), or save it "
                         "as greyscale, one grey level per class")
    raise ValueError(f"{path}: a mask of type {image.mode!r}; save it as 8-bit greyscale")


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


def decode(path):
    """The upright PIL image of a file, in whatever mode it has; ValueError that names a file it cannot read."""
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
            _refuse_ambiguous(image)
            image.load()
            turned = ImageOps.exif_transpose(image)
            inverted = image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(262) == 0
    except Image.UnidentifiedImageError:
        raise ValueError(f'{path}: not a readable {", ".join(FORMATS)} image') from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {_too_large(error)}") from None
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # decoders raise nearly anything: struct.error, SyntaxError ...
        raise ValueError(f"{path}: truncated or damaged ({type(error).__name__}: {error})") from None
    if inverted:  # TIFF "white is zero", which Pillow applies to 8 bits only
        turned = Image.fromarray(DEEP - np.asarray(turned).astype(np.uint16))
    return turned


class _Refused(Exception):
    """A readable file that would not be shown truthfully."""


def _refuse_ambiguous(image):
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        raise _Refused(_too_large(f"{image.width}x{image.height} pixels"))
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a JPEG photo with previews behind it
        raise _Refused(f"{frames} frames; save each as a file of its own")
    if image.tile and str(image.tile[0][3]).startswith("LA;16"):
        raise _Refused("16-bit grey with transparency; save it without transparency to keep its depth")


def _too_large(what):
    return f"{what}; more than PIL.Image.MAX_IMAGE_PIXELS = {Image.MAX_IMAGE_PIXELS}: tile or shrink it"


def _grey_levels(image, path, window):
    """Mode 'F' on the scale 0 .. 65535."""
    if image.mode not in ("1", "L", "I", "F") and not image.mode.startswith("I;16"):
        raise ValueError(f"{path}: window={tuple(window)} is for greyscale files; this one is {image.mode}")
    raw = np.asarray(image.convert("L") if image.mode == "1" else image).astype(np.float64)
    if not np.isfinite(raw).all():
        raise ValueError(f"{path}: holds nan or infinite values")
    low, high = window or (0, DEEP)
    if not window and (image.mode == "F" or raw.min() < 0 or raw.max() > DEEP):
        raise ValueError(f"{path}: values from {raw.min():g} to {raw.max():g} have no agreed black and "
                         "white: give window=(low, high)")
    return Image.fromarray((((raw - low) / (high - low)).clip(0, 1) * DEEP).astype(np.float32))


def _over_black(image):
    rgba = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return flat.convert("L") if image.mode in ("L", "LA", "La") else flat
