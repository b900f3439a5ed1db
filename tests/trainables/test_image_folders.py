"""Folders of images that Pillow wrote here are compared with what was painted; random parts with their ranges."""

import numpy as np
import pytest

from trainables.common.data.image_folders import open_image_folder, random_part


@pytest.fixture
def folder(tmp_path):
    """Two classes; each image is 40 wide, 30 high, one half red and one blue, brighter with its number."""
    from PIL import Image

    for split, count in (("train", 3), ("val", 2)):
        for number, name in enumerate(("n02", "n01")):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for image in range(count):
                pixels = np.zeros((30, 40, 3), np.uint8)
                pixels[:, :20, 0], pixels[:, 20:, 2] = 60 + 20 * image, 60 + 20 * image + 100 * number
                suffix = "JPEG" if image == 0 else "png"
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{image}.{suffix}", quality=95)
    return tmp_path / "images"


def test_a_folder_of_images_is_listed_by_class(folder):
    found = open_image_folder(folder)
    assert found.classes == ("n01", "n02")
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and found.val.labels.tolist() == [0, 0, 1, 1]
    assert [file.name for file in found.val.files] == ["0.JPEG", "1.png"] * 2
    assert open_image_folder(folder).sha == found.sha
    (folder / "train" / "n01" / "1.png").rename(folder / "train" / "n01" / "3.png")
    assert open_image_folder(folder).sha != found.sha


def test_the_centre_has_the_colours_that_were_written(folder):
    found = open_image_folder(folder)
    decoded = found.decode("train", [1, 4, 0], 8)
    assert decoded.shape == (3, 3, 8, 8) and decoded.dtype == np.uint8
    for image, (red, blue), slack in zip(decoded, [(80, 180), (80, 80), (60, 160)], [0, 0, 3], strict=True):
        assert abs(int(image[0, 4, 0]) - red) <= slack and abs(int(image[2, 4, 7]) - blue) <= slack
        assert image[0, 4, 7] <= slack and image[2, 4, 0] <= slack and image[1].max() <= slack + 1
    assert np.array_equal(found.decode("train", [1, 4, 0], 8, threads=3), decoded)
    assert found.decode("val", [], 8).shape == (0, 3, 8, 8)


def test_a_random_part_is_a_function_of_seed_and_image(folder):
    found = open_image_folder(folder)
    together, alone = found.decode("train", [0, 1, 2], 16, crop_seed=5), found.decode("train", [2], 16, crop_seed=5)
    assert np.array_equal(together[2], alone[0])
    parts = [found.decode("train", [1], 16, crop_seed=seed)[0].astype(int) for seed in range(60)]
    assert len({part.tobytes() for part in parts}) > 50
    pairs = [found.decode("train", [1, 2], 16, crop_seed=seed) for seed in range(20)]
    redder = [(pair[:, 0] > pair[:, 2]) for pair in pairs]  # the two files differ in brightness alone
    assert np.mean([np.array_equal(first, second) for first, second in redder]) < 0.3
    both = [part for part in parts if part[0].max() and part[2].max()]
    mirrored = [part[2, :, 0].sum() > part[2, :, -1].sum() for part in both]  # blue is on the right in the file
    assert 0.2 < np.mean(mirrored) < 0.8


def test_random_parts_lie_inside_with_the_areas_and_aspects_they_should_have():
    rng = np.random.default_rng(0)
    parts = np.array([random_part(500, 400, rng) for _ in range(2000)])
    wide, high = parts[:, 2] - parts[:, 0], parts[:, 3] - parts[:, 1]
    assert parts[:, :2].min() >= 0 and parts[:, 2].max() <= 500 and parts[:, 3].max() <= 400
    share = wide * high / 200_000
    assert share.min() >= 0.08 and share.max() <= 1 and 0.3 < share.mean() < 0.54  # 0.54 were none of them too large
    assert (wide / high).min() >= 0.749 and (wide / high).max() <= 1.334
    assert random_part(1000, 10, rng) == (495.0, 0.0, 505.0, 10.0)  # no such part fits


def test_folders_that_cannot_be_read_are_refused(folder, tmp_path):
    found = open_image_folder(folder)
    file = folder / "train" / "n01" / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"train/n01/1.png is no image that can be read"):
        found.decode("train", [0, 1], 8)
    file.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"train/n01/1.png is no image that can be read"):
        found.decode("train", [1], 8, crop_seed=0)
    with pytest.raises(ValueError, match="size must be at least 1"):
        found.decode("train", [0], 0)
    (folder / "val" / "n03").mkdir()
    with pytest.raises(ValueError, match=r"same classes; only one of them has n03"):
        open_image_folder(folder)
    (folder / "train" / "n03").mkdir()
    with pytest.raises(ValueError, match=r"train/n03 holds no image that ends in .jpeg"):
        open_image_folder(folder)
    with pytest.raises(ValueError, match="must be a folder with one folder of images per class"):
        open_image_folder(tmp_path)
    (tmp_path / "flat" / "train" / "n01").mkdir(parents=True)
    (tmp_path / "flat" / "val").mkdir()
    with pytest.raises(ValueError, match="sort them into"):
        open_image_folder(tmp_path / "flat")
