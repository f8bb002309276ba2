"""A PixArt-alpha pipeline of tiny size with random weights, written as others publish theirs.

    python -m tests.tiny_pixart FOLDER [VAE]
"""

import json
import shutil
import string
import sys
from pathlib import Path

import torch

BETAS = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", num_train_timesteps=1000)
WORDS = ("a", "an", "image", "of", "with", "red", "green", "blue", "large", "small", "lesion", "cell", "polyp", "tissue")
WINDOW = 120  # tokens


def tokenizer(words=WORDS):
    """A tokenizer of T5's kind that knows these words as one token each, and all others by their letters."""
    from transformers import T5Tokenizer
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -4.0)]
    pieces += [("\u2581" + word, -1.0) for word in dict.fromkeys(words)]
    pieces += [(letter, -6.0) for letter in string.ascii_letters + string.digits + string.punctuation]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=WINDOW)


def parts(seed=0, *, sample_size=8, layers=2, heads=2, head_dim=12, text_width=16, text_layers=2, text_heads=2, words=WORDS,
          micro_conditions=None):
    """{part: network}, of random weights.

    Args:
        sample_size: side of the latents; images have twice as many pixels.
        layers, heads, head_dim: of the transformer; heads * head_dim is a multiple of 4, and of 3 with micro_conditions.
        text_width, text_layers, text_heads: of T5.
        words: what the tokenizer knows as a whole.
        micro_conditions: whether the transformer is told resolution and aspect ratio; None leaves it to diffusers.
    """
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel
    torch.manual_seed(seed)
    known = tokenizer(words)
    transformer = PixArtTransformer2DModel(
        sample_size=sample_size, patch_size=2, in_channels=4, out_channels=8, num_layers=layers, num_attention_heads=heads,
        attention_head_dim=head_dim, cross_attention_dim=heads * head_dim, caption_channels=text_width,
        norm_type="ada_norm_single", use_additional_conditions=micro_conditions)
    text_encoder = T5EncoderModel(T5Config(
        vocab_size=len(known), d_model=text_width, d_kv=text_width // text_heads, d_ff=2 * text_width, num_layers=text_layers,
        num_heads=text_heads, feed_forward_proj="gated-gelu", tie_word_embeddings=False, pad_token_id=known.pad_token_id,
        eos_token_id=known.eos_token_id))
    vae = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
                        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=2 * sample_size,
                        scaling_factor=0.3)
    scheduler = DPMSolverMultistepScheduler(**BETAS, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="linspace")
    return dict(transformer=transformer.eval(), text_encoder=text_encoder.eval(), vae=vae.eval(), tokenizer=known,
                scheduler=scheduler)


def save(folder, *, vae=None, seed=0, **options) -> Path:
    """The folder of such a pipeline.

    Args:
        vae: folder of an AutoencoderKL that is copied in place of a random one.
        options: of `parts`.
    """
    folder, made = Path(folder), parts(seed, **options)
    for name, part in made.items():
        if name == "vae" and vae:
            shutil.copytree(vae, folder / name)
        else:
            part.save_pretrained(folder / name)
    index = {name: ["transformers" if name in ("text_encoder", "tokenizer") else "diffusers", type(part).__name__]
             for name, part in made.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline", **index}, indent=2))
    return folder


if __name__ == "__main__":
    save(sys.argv[1], vae=next(iter(sys.argv[2:]), None))
