"""Layers that several backbones, codecs and encoders share: attention, embeddings, patches, MLP."""

from libs.nn.attention import Attention, attention, use_backend
from libs.nn.embedding import timestep_embedding
from libs.nn.init import init_transformer_
from libs.nn.mlp import Mlp
from libs.nn.patches import PatchEmbed, unpatchify

__all__ = ["Attention", "Mlp", "PatchEmbed", "attention", "init_transformer_", "timestep_embedding",
           "unpatchify", "use_backend"]
