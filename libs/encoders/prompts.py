"""Many descriptions as token states, encoded as they are asked for."""

import torch
from torch import Tensor

KEPT = 1024  # distinct texts whose states are kept


class Prompts:
    """A lazy sequence of token states: prompts[[3, 5]] -> Tensor (2, L, D), float32 on the CPU.

    Thousands of descriptions need no memory, and a text that comes again is encoded once while it is among the last 1024
    distinct ones.

    Args:
        encoder: see `base.Encoder`.
        texts: the descriptions, in order; kept as `texts`.
        batch_size: texts per call of the encoder.
    """

    def __init__(self, encoder, texts: list[str], *, batch_size: int = 64):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected 1 or more")
        self.encoder, self.texts, self.batch_size = encoder, list(texts), batch_size
        self._kept = {}  # the last one used comes last

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, indices) -> Tensor:
        """States (N, L, D) of the texts at N indices: a list, array or tensor of numbers, or a slice."""
        texts = self.texts[indices] if isinstance(indices, slice) else [self.texts[int(i)] for i in indices]
        if not texts:
            return torch.empty(0, *self.encoder.shape)
        distinct = list(dict.fromkeys(texts))
        states = {text: self._kept.pop(text) for text in distinct if text in self._kept}
        new = [text for text in distinct if text not in states]
        for start in range(0, len(new), self.batch_size):
            part = new[start:start + self.batch_size]
            # cloned: a view would keep the whole batch in memory
            states |= {text: state.clone() for text, state in zip(part, self.encoder.encode(part).cpu())}
        self._kept |= {text: states[text] for text in distinct}
        for text in list(self._kept)[:-KEPT]:
            del self._kept[text]
        return torch.stack([states[text] for text in texts])
