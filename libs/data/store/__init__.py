"""The packed feature store: codec latents and text states of one split of a data set, made once, read in whole batches.

    data.store.write(path, dataset, encode_images=..., encode_texts=..., identity=...)
    features = data.Features(path, random_flip=True)

A store is a folder with `manifest.json` and what it lists, N images of which each has one copy or two (the second is of
the mirrored image) and any number of captions, T of them distinct:

    mean.npy, std.npy     (N, copies, C, h, w)  of the codec, before scaling; no std where the codec has no spread
    mask.npy              (N, H, W) uint8       where the data have masks: classes or grey levels, see `masks.MaskCode`
    labels.npy            (N,) int64            where the data are labelled
    weights.npy           (N,) float32          where the data had weights when it was made; never compared, see `opening`
    text.npy              (T, L, D)             states of each distinct caption
    caption_starts.npy    (N + 1,) int64        caption k of image i is row caption_rows[caption_starts[i] + k] of text.npy
    caption_rows.npy      int64
    empty.npy             (L, D)                states of the empty text
    captions.jsonl        T strings             where the captions are known
    file_names.jsonl      N strings
"""

from .manifest import check, read, verify
from .reading import Features
from .writing import Writer, write

__all__ = ["Features", "Writer", "check", "read", "verify", "write"]
