"""Med-Art's captions of endoscopic images (Kvasir): the Visual Symptom Generator, which knows the class.

Expected: texts that begin with 'An endoscopic image of <class>', at most 120 tokens of the T5 encoder. An image without a
good one after all attempts keeps that sentence alone, and the column `fallback` of the table says why.

    python scripts/caption_images.py --config=configs/kvasir_captions.py --config.input.path=IMAGES \\
        --workdir=workdir/kvasir_captions

IMAGES are class folders, or a table of Med-Art's kind (file_name,text with 'An endoscopic image of <class>'), beside which the
metadata.csv that trainings read is then written:

    python scripts/caption_images.py --config=configs/kvasir_captions.py --config.input.path=dataset/kvasir/train/raw.csv \\
        --config.output.table=metadata.csv --workdir=workdir/kvasir_captions

With vLLM: `vllm serve llava-hf/llama3-llava-next-8b-hf`, then --config.model.name=server --config.output.threads=16.
"""

from configs.common import d


def get_config():
    config = d()
    config.seed = 1234
    config.limit = 0  # images to try it on; 0 = all
    # path: a folder of class folders, a metadata table, or loose images. Split '' = every split.
    config.input = d(name="folder", path="", split="", label_column="label", weight_column="", window=())
    config.prompts = "vsg_kvasir"  # a file of assets/prompts/, or the path of one's own
    # name 'transformers' or 'server': its options are in the section of that name
    config.model = d(name="transformers", path="llava-hf/llama3-llava-next-8b-hf",
                     max_new_tokens=150, temperature=0.8, retry_temperature=0.8, top_p=0.9, top_k=50, max_side=1024)
    config.transformers = d(dtype="auto", device="auto")
    config.server = d(base_url="http://localhost:8000/v1", api_key_env="", image_format="png", timeout=120.0, tries=5,
                      backoff=1.0, max_wait=60.0, startup=600.0)  # startup: seconds to wait while it loads
    # Where the tokenizer is not at hand, tokens are estimated.
    # on_fail 'mark': an image without a good description stays without text, or with fallback='start' gets the sentence that
    # all begin with; 'stop': the work ends. shorten 'sentences': the last are left out; 't5_simplify': said anew by T5
    config.checks = d(attempts=5, on_fail="mark", give_up=10, min_words=10, max_words=100,
                      max_tokens=120, tokenizer="google/t5-v1_1-xxl", no_measurements=True, forbidden=(),
                      shorten="sentences", fallback="start", max_identical=0.3, dependence=8, max_unchanged=0.3)
    config.t5_simplify = d(path="t5-large", prefix="simplify: ", max_length=120, min_length=90, num_beams=4, window=512)
    # table: beside the images, read by dataset.path=<it>; on_change 'keep', 'redo', 'stop': captions of other prompts
    config.output = d(table="metadata_captions.csv", threads=1, on_change="stop", redo_failed=False)
    return config
