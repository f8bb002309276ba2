"""Descriptions of images by multimodal language models: prompts, models, checks, and a table that resumes.

    model = captioning.get_model("server", path="", base_url="http://localhost:8000/v1")
    describer = captioning.Describer(model, captioning.load_prompts("vap_isic"), captioning.Rules(min_words=5))
    with captioning.Table("captions.csv") as table:
        for row in captioning.caption(items, describer, table, threads=8): ...
"""

from .checks import Rules, estimated_tokens
from .describe import Describer, Item, caption, image_dependence
from .models import Unanswered, Unusable
from .models import get as get_model
from .prompts import load as load_prompts
from .report import report, summary, unchanged
from .table import Caption, Table, write_metadata, write_text

__all__ = ["Caption", "Describer", "Item", "Rules", "Table", "Unanswered", "Unusable", "caption", "estimated_tokens",
           "get_model", "image_dependence", "load_prompts", "report", "summary", "unchanged", "write_metadata", "write_text"]
