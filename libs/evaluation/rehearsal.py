"""What is wrong with drawn lesions in a pool of images to rate: the truth of a rehearsal, by their words and their pixels."""

import numpy as np
from PIL import Image

from libs.data import phantoms


def phantom_faults(pool):
    """item -> {axis: level}: whether size, colour and skin of a drawn lesion are those of its prompt.

    Without a lesion in it the image is of the lowest quality and fits no prompt; one wrong word leaves the level below the best.
    """
    image_axis, prompt_axis = pool.axes[0], pool.axes[-1]

    def faults(item):
        with Image.open(pool.folder / item.image) as picture:
            seen = phantoms.measure(np.asarray(picture.convert("RGB")))
        words = {key: [word for word in phantoms.ATTRIBUTES[key] if asked_for(key, word, item.prompt)] for key in
                 ("size", "colour", "skin")}
        wrong = sum(bool(asked) and seen[key] not in asked for key, asked in words.items())
        if not seen["size"]:
            return {image_axis.name: 1, prompt_axis.name: 1}
        return {prompt_axis.name: max(prompt_axis.levels) - 1 if wrong == 1 else 1} if wrong else {}

    return faults


def asked_for(key, word, prompt):
    """Whether a prompt in the phantoms' words has this one; skin is told as 'on tan skin', which a colour may share a word with."""
    prompt = prompt.casefold()
    return f"{word} skin" in prompt if key == "skin" else word in prompt.partition(" on ")[0]
