"""Captions of single white blood cells in stained smears: VAP-Diffusion's three steps, the class unnamed.

Expected: descriptions by nucleus, cytoplasm, size and background.

    python scripts/caption_images.py --config=configs/wbc_captions.py --config.input.path=IMAGES \\
        --workdir=workdir/wbc_captions

With vLLM: `vllm serve llava-hf/llava-v1.6-mistral-7b-hf`, then --config.model.name=server --config.output.threads=16.
"""

from configs.common import d


def get_config():
    config = d()
    config.seed = 1234
    config.limit = 0  # images to try it on; 0 = all
    # path: a folder of class folders, a metadata table, or loose images. Split '' = every split.
    config.input = d(name="folder", path="", split="", label_column="label", weight_column="", window=())
    config.prompts = "vap_bloodcell"  # a file of assets/prompts/, or the path of one's own
    # name 'transformers' or 'server': its options are in the section of that name
    config.model = d(name="transformers", path="llava-hf/llava-v1.6-mistral-7b-hf",
                     max_new_tokens=300, temperature=0.0, retry_temperature=0.8, top_p=0.9, top_k=0, max_side=1024)
    config.transformers = d(dtype="auto", device="auto")
    config.server = d(base_url="http://localhost:8000/v1", api_key_env="", image_format="png", timeout=120.0, tries=5,
                      backoff=1.0, max_wait=60.0, startup=600.0)  # startup: seconds to wait while it loads
    # on_fail 'mark': an image without a good description stays without text, or with fallback='start' gets the sentence that
    # all begin with; 'stop': the work ends. shorten 'sentences': the last are left out; 't5_simplify': said anew by T5
    config.checks = d(attempts=3, on_fail="mark", give_up=10, min_words=6, max_words=60,
                      max_tokens=0, tokenizer="", no_measurements=True,
                      forbidden=("lymphocyte", "neutrophil", "monocyte", "eosinophil", "basophil"),
                      shorten="sentences", fallback="", max_identical=0.3, dependence=8, max_unchanged=0.3)
    # table: beside the images, read by dataset.path=<it>; on_change 'keep', 'redo', 'stop': captions of other prompts
    config.output = d(table="metadata_captions.csv", threads=1, on_change="stop", redo_failed=False)
    return config
