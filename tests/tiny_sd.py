"""A Stable Diffusion pipeline of tiny size with random weights, written as others publish theirs."""

import json
from pathlib import Path

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789:.,-"
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
WINDOW = 12


def tokenizer():
    from transformers import CLIPTokenizer
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "red</w>", "green</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate([*words, "re", "gr", "gre", "gree"])}
    merges = [("r", "e"), ("re", "d</w>"), ("g", "r"), ("gr", "e"), ("gre", "e"), ("gree", "n</w>")]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=WINDOW)


def parts(seed=0, *, prediction_type="epsilon"):
    """{part: network}; the size of its images is 16, that of its latents 8."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel
    torch.manual_seed(seed)
    words = tokenizer()
    unet = UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
                                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4,
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16, attention_head_dim=2)
    vae = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
                        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=16, scaling_factor=0.3)
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=WINDOW, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id))
    scheduler = PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, prediction_type=prediction_type)
    return dict(unet=unet, vae=vae, text_encoder=text.eval(), tokenizer=words, scheduler=scheduler)


def save(folder, **options) -> Path:
    """The folder of such a pipeline."""
    folder = Path(folder)
    made = parts(**options)
    for name, part in made.items():
        part.save_pretrained(folder / name)
    index = {name: ["transformers" if name in ("text_encoder", "tokenizer") else "diffusers", type(part).__name__]
             for name, part in made.items()}
    (folder / "model_index.json").write_text(json.dumps({
        "_class_name": "StableDiffusionPipeline", **index, "safety_checker": [None, None], "feature_extractor": [None, None],
        "requires_safety_checker": False}))
    return folder
