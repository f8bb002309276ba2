"""People's scores of images: the pool they are given, the page they answer on, their agreement, and the filter learned from them.

    pool       images to be rated, blinded; the scale
    building   a pool from folders of samples, real images, repeats and controls
    store      answers in SQLite, appended and never overwritten
    page       where they are given, in a browser
    agreement  how well raters agree, with each other and with themselves (reliability, verdict, figures)
    scripted   raters that are programs and know the truth, for rehearsals
    learning   what a filter learns from: answers without their raters' bias, split by prompt; calibration
    embedding  frozen encoders of images and texts
    filter     images and prompts in, probability that raters call them good out
    training   how the filter's small network learns, from ratings, swapped prompts and real pairs
    judged     what a filter is worth, on ratings that it was not trained on
    tested     the same on another pool, by what is known of its images
"""

from .filter import Filter, load_filter
from .pool import Answer, Axis, Item, Pool, wording

__all__ = ["Answer", "Axis", "Filter", "Item", "Pool", "load_filter", "wording"]
