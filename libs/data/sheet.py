"""data.png: some training images as a network sees them, with their masks and labels drawn in."""

import os

import numpy as np
import torch

SHEET_IMAGES, COLUMNS = 32, 8
CELL_PIXELS, MOST_PIXELS = 128, 192  # side of an image on the sheet: small ones are enlarged, large ones reduced
CAPTION_PIXELS, GAP_PIXELS = 16, 6
PAPER, INK = (252, 251, 248), (33, 34, 31)
OUTLINE = (0, 210, 255)  # of a mask with one class beside the background
DECODED_AT_ONCE = 4  # latents


def choose(dataset, count=SHEET_IMAGES, *, seed=0):
    """Indices of `count` items, or of all where there are fewer: the classes in turn, at random within each,
    by the seed."""
    rng = np.random.default_rng((seed % 2 ** 63, 5))
    order = rng.permutation(len(dataset))
    if dataset.labels is None:
        return order[:count].tolist()
    labels = np.asarray(dataset.labels)[order]
    rank = np.empty(len(order), np.int64)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    return order[np.lexsort((labels, rank))][:count].tolist()


def write_sheet(path, dataset, *, seed=0, decode=None):
    """Write the PNG `path`, whole or not at all: 8 images a row, below each its class or the beginning of
    its caption.

    Args:
        dataset: images, or latents with `decode`. No augmentation is shown.
        decode: batch of latents -> images (n, C, H, W) in [-1, 1].
    """
    from PIL import Image
    indices = choose(dataset, seed=seed)
    cells = [_cell(*each) for each in _shown(dataset, indices, decode)]
    side = cells[0].width
    columns, rows = min(COLUMNS, len(cells)), -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (columns * (side + GAP_PIXELS) + GAP_PIXELS,
                              rows * (cells[0].height + GAP_PIXELS) + GAP_PIXELS), PAPER)
    for place, cell in enumerate(cells):
        row, column = divmod(place, COLUMNS)
        sheet.paste(cell, (GAP_PIXELS + column * (side + GAP_PIXELS), GAP_PIXELS + row * (cell.height + GAP_PIXELS)))
    staged = f"{path}.{os.getpid()}"
    sheet.save(staged, format="PNG")
    os.replace(staged, path)


def _shown(dataset, indices, decode):
    """(image uint8 (H, W, 3), classes of the mask's pixels (H, W) or None, their colours, caption) of each
    item."""
    for begin in range(0, len(indices), DECODED_AT_ONCE):
        part = indices[begin:begin + DECODED_AT_ONCE]
        batch = dataset.batch(part)
        images = batch["image"] if decode is None else decode(batch)
        images = ((images.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        for k, index in enumerate(part):
            image = images[k].expand(3, -1, -1).permute(1, 2, 0).numpy()
            mask = colours = None
            if "mask" in batch and dataset.masks_as is not None:
                mask = dataset.masks_as.index(batch["mask"][k:k + 1])[0].numpy()
                several = len(dataset.masks_as.values) > 2
                colours = dataset.masks_as.picture(batch["mask"][k]).permute(1, 2, 0).numpy() if several else None
            yield image, mask, colours, _caption(dataset, index)


def _caption(dataset, index):
    """The class of an image, or its text where there are no classes."""
    if dataset.labels is not None and dataset.classes:
        return str(dataset.classes[int(dataset.labels[index])])
    text = dataset.captions[index] if dataset.captions is not None else ""
    return str(text if isinstance(text, str) else text[0] if len(text) else "")


def _cell(image, mask, colours, caption):
    """One image of the sheet as a PIL image: enlarged by whole pixels or reduced, the outlines of its mask,
    its caption."""
    from PIL import Image, ImageDraw
    size = image.shape[0]
    factor = -(-CELL_PIXELS // size) if size < CELL_PIXELS else 1
    side = min(size * factor, MOST_PIXELS)
    method = Image.Resampling.NEAREST if side >= size else Image.Resampling.BOX
    shown = np.array(Image.fromarray(image).resize((side, side), method))
    if mask is not None:
        at = np.arange(side) * mask.shape[0] // side
        mask = mask[np.ix_(at, at)]
        edge = _edges(mask)
        shown[edge] = OUTLINE if colours is None else _bright(colours[np.ix_(at, at)][edge])
    cell = Image.new("RGB", (side, side + CAPTION_PIXELS), PAPER)
    cell.paste(Image.fromarray(shown), (0, 0))
    draw, font = ImageDraw.Draw(cell), _font()
    text = " ".join(caption.split())
    while text and draw.textlength(text, font=font) > side:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    draw.text((0, side + 1), text, fill=INK, font=font)
    return cell


def _edges(mask):
    """Pixels of a class other than 0 that touch another class, (H, W) bool; two pixels wide on an enlarged
    mask."""
    padded = np.pad(mask, 1, mode="edge")
    height, width = mask.shape
    edge = np.zeros(mask.shape, bool)
    for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
        edge |= padded[down:down + height, right:right + width] != mask
    return edge & (mask > 0)


def _bright(colours):
    """Colours (n, 3) that can be seen on a dark image."""
    return np.where(colours.max(-1, keepdims=True) < 80, np.uint8(160), colours)


def _font():
    """A small font with the letters of most alphabets."""
    from pathlib import Path

    import matplotlib
    from PIL import ImageFont
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), CAPTION_PIXELS - 5)
