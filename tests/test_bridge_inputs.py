"""How the images that a bridge carries are read: as those of the training were."""

import ml_collections
import numpy as np
from PIL import Image

from libs.evaluation.bridge.opening import open_images


def test_images_of_a_bridge_are_cut_as_those_of_the_training(tmp_path):
    """A network that was trained on whole images in a margin gets those; a training's random cuts are central ones."""
    pixels = np.full((32, 64, 3), 120, np.uint8)
    pixels[:, ::2] = 230
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "1.png")

    def rows(**dataset):
        config = ml_collections.ConfigDict({"dataset": {"name": "folder", **dataset}})
        images, _ = open_images(config, tmp_path, (3, 32, 32))
        return np.asarray(images[0]["image"])

    padded, central = rows(crop="pad"), rows(crop="center")
    margin = padded[:, :8]
    assert (margin == margin.flat[0]).all() and not (central[:, :8] == central.flat[0]).all()
    assert (rows(crop="random") == central).all() and (rows() == central).all()
