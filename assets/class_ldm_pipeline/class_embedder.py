"""The learned tokens of the classes, which the UNet attends to."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config


class ClassEmbedder(ModelMixin, ConfigMixin):
    """Labels (N,) -> one token each, (N, 1, dim); the last row of the table, num_classes, means no class."""

    @register_to_config
    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        self.embedding = torch.nn.Embedding(num_classes + 1, dim)

    def forward(self, label):
        return self.embedding(label)[:, None]
