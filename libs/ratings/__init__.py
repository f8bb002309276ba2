"""People's scores of images: the pool they are given, the page they answer on, their agreement, and the filter learned from them.

    pool       images to be rated, blinded; the scale
    store      answers in SQLite, appended and never overwritten
    page       where they are given, in a browser
    building   a pool from folders of samples, real images, repeats and controls
    agreement  how well raters agree, with each other and with themselves
    scripted   raters who know the truth, for dry runs
    learning   what a filter learns from: answers without their raters' bias, split by prompt
    filter     the filter: images and prompts in, probability that raters call them good out
"""

from .filter import Filter, load_filter
from .pool import Answer, Axis, Item, Pool, wording

__all__ = ["Answer", "Axis", "Filter", "Item", "Pool", "load_filter", "wording"]
