"""People's scores of images: the pool they are given, the page they answer on, their agreement, and the filter learned from them.

    pool       images to be rated, blinded; the scale
    store      answers in SQLite, appended and never overwritten
"""

from .pool import Answer, Axis, Item, Pool, wording

__all__ = ["Answer", "Axis", "Item", "Pool", "wording"]
