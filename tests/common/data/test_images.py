"""Images: idx files, folders, splits, and batches that follow from a seed and an index."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from common.data.config import AugmentConfig, ImageConfig
from common.data.image_batches import OrderedImages, ShuffledImages, augment, image_batch
from common.data.image_sources import Images, open_images, read_idx
from common.errors import DataError

RNG = np.random.default_rng(0)


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + b"".join(
        size.to_bytes(4, "big") for size in array.shape
    ) + array.astype(np.uint8).tobytes()  # fmt: skip


def write_mnist(folder: Path, *, spelling: str = "-", test: bool = True) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, count in (("train", 20), ("t10k", 6)):
        if split == "train" or test:
            pixels = RNG.integers(0, 256, (count, 5, 4), dtype=np.uint8)
            labels = np.arange(count) % 3
            (folder / f"{split}-images{spelling}idx3-ubyte").write_bytes(idx(pixels))
            packed = gzip.compress(idx(labels))
            (folder / f"{split}-labels{spelling}idx1-ubyte.gz").write_bytes(packed)
            written |= {split: pixels, f"{split} labels": labels}
    return written


@pytest.mark.parametrize("spelling", ["-", "."])
def test_idx_files_have_their_own_test_set(tmp_path: Path, spelling: str) -> None:
    written = write_mnist(tmp_path / "raw", spelling=spelling)
    found = open_images(ImageConfig(path=tmp_path, test_images=3))
    assert found.shape == (1, 5, 4) and found.classes == ("0", "1", "2")
    np.testing.assert_array_equal(found.train.pixels[..., 0], written["train"])
    np.testing.assert_array_equal(found.val.pixels[..., 0], written["t10k"])
    np.testing.assert_array_equal(found.val.labels, written["t10k labels"])


def test_the_test_images_stay_unseen_while_hyper_parameters_are_chosen(tmp_path: Path) -> None:
    written = write_mnist(tmp_path)
    found = open_images(ImageConfig(path=tmp_path, evaluate_on="train"))
    np.testing.assert_array_equal(found.train.pixels[..., 0], written["train"][:14])
    np.testing.assert_array_equal(found.val.pixels[..., 0], written["train"][14:])
    assert found.fingerprint != open_images(ImageConfig(path=tmp_path)).fingerprint


def test_a_source_without_a_test_set_is_split_by_its_seed(tmp_path: Path) -> None:
    pixels = write_mnist(tmp_path, test=False)["train"]
    splits = [open_images(ImageConfig(path=tmp_path, seed=seed)) for seed in (0, 0, 1)]
    for found in splits:
        assert (len(found.train), len(found.val)) == (16, 4)
        both = np.concatenate([found.train.pixels, found.val.pixels])[..., 0].reshape(20, -1)
        assert {row.tobytes() for row in both} == {row.tobytes() for row in pixels.reshape(20, -1)}
    assert np.array_equal(splits[0].val.pixels, splits[1].val.pixels)
    assert not np.array_equal(splits[0].val.pixels, splits[2].val.pixels)
    with pytest.raises(DataError, match="20 images less 20 to evaluate on leave none"):
        open_images(ImageConfig(path=tmp_path, test_images=20))


GOOD = idx(np.zeros((20, 5, 4)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no idx file"),
        (b"\0\0\x0d\x03" + GOOD[4:], "no idx file of unsigned bytes"),
        (b"PK\x03\x04 something else", "no idx file"),
        (GOOD[:9], "ends within its header"),
        (GOOD[:-1], "has 399 of 400 values"),
        (GOOD + b"\0", "has more than 400 values"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "claims 79,228,162,458,924,105,385,300,197,375 values"),
        (idx(np.zeros((19, 5, 4))), r"has the shape \(19, 5, 4\) and .* \(20,\)"),
        (idx(np.zeros((20, 4))), r"has the shape \(20, 4\)"),
    ],
)
def test_a_damaged_idx_file_is_named_with_its_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    write_mnist(tmp_path, test=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        open_images(ImageConfig(path=tmp_path))
    path.unlink()
    path.with_suffix(".gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=reason):
        open_images(ImageConfig(path=tmp_path))


@pytest.mark.parametrize("cut", [5, 20, -1])
def test_a_truncated_gzip_file_is_an_error(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(GOOD)[:cut])
    with pytest.raises(DataError, match=r"cannot read .*x\.gz"):
        read_idx(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="no labels file of 'train'"):
        open_images(ImageConfig(path=tmp_path))
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        open_images(ImageConfig(path=tmp_path / "nowhere"))
    with pytest.raises(DataError, match="did you mean 'mnist5k'"):
        open_images(ImageConfig(dataset="mnist5"))


def write_image(path: Path, size: tuple[int, int] = (6, 4), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    Image.fromarray(RNG.integers(0, 256, (*size[::-1], *channels), dtype=np.uint8)).save(path)


def test_a_folder_of_images_by_class(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.PNG", "dog/1.png", "dog/.hidden.png"):
        write_image(tmp_path / name)
    (tmp_path / "notes").mkdir()
    found = open_images(ImageConfig(path=tmp_path, test_images=1))
    assert found.classes == ("cat", "dog") and found.shape == (1, 4, 6)
    assert sorted([*found.train.labels, *found.val.labels]) == [0, 0, 1]
    write_image(tmp_path / "dog/2.jpg", mode="RGB")
    write_image(tmp_path / "dog/3.png", mode="RGBA")
    assert open_images(ImageConfig(path=tmp_path)).shape == (3, 4, 6), "one in colour: all are"
    write_image(tmp_path / "dog/4.png", size=(9, 9))
    with pytest.raises(DataError, match=r"4\.png has 9 x 9 pixels, .* 6 x 4"):
        open_images(ImageConfig(path=tmp_path))
    assert open_images(ImageConfig(path=tmp_path, size=8)).shape == (3, 8, 8)


def test_a_folder_with_its_own_test_set(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "train/b/2.png", "test/b/3.png"):
        write_image(tmp_path / name)
    found = open_images(ImageConfig(path=tmp_path))
    assert [*found.train.labels] == [0, 1, 1] and [*found.val.labels] == [1]
    write_image(tmp_path / "test/c/4.png")
    with pytest.raises(DataError, match="has other classes: c"):
        open_images(ImageConfig(path=tmp_path))
    for path in tmp_path.glob("test/*/*"):
        path.unlink()
    with pytest.raises(DataError, match="test has no images"):
        open_images(ImageConfig(path=tmp_path))
    (tmp_path / "train/a/1.png").unlink()
    with pytest.raises(DataError, match="train has 1 folders with images"):
        open_images(ImageConfig(path=tmp_path))


@pytest.mark.parametrize("keep", [0, 8, 40, 60])
def test_a_damaged_image_is_named(tmp_path: Path, keep: int) -> None:
    for name in ("a/1.png", "b/1.png"):
        write_image(tmp_path / name, size=(30, 30))
    path = tmp_path / "b/1.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cannot read .*b.1\.png"):
        open_images(ImageConfig(path=tmp_path))


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a/1.png")
    (tmp_path / "b").mkdir()
    Image.new("1", (20_000, 20_000)).save(tmp_path / "b/1.png")
    with pytest.raises(DataError, match=r"cannot read .*b.1\.png"):
        open_images(ImageConfig(path=tmp_path, size=8))


def test_mnist5k_is_500_of_each_digit_and_its_resized_images_keep_their_brightness() -> None:
    found = open_images(ImageConfig(dataset="mnist5k", test_images=1000))
    assert found.shape == (1, 28, 28) and (len(found.train), len(found.val)) == (4000, 1000)
    labels = np.concatenate([found.train.labels, found.val.labels])
    assert np.bincount(labels).tolist() == [500] * 10
    small = open_images(ImageConfig(dataset="mnist5k", test_images=1000, size=14))
    assert small.shape == (1, 14, 14)
    means = [images.pixels.mean(axis=(1, 2, 3)) for images in (found.val, small.val)]
    assert np.abs(means[0] - means[1]).max() < 1


# Batches ------------------------------------------------------------------------------------------

FEW = Images(RNG.integers(0, 17, (10, 8, 8, 1), dtype=np.uint8), np.arange(10), 16)
ALL = AugmentConfig(shift=2, rotate=20, scale=0.2, flip=True, erase=0.3)


def test_an_epoch_has_every_image_once_and_a_batch_follows_from_its_index() -> None:
    source = ShuffledImages(FEW, batch_size=4, seed=3, augment=ALL)
    labels = [source.batch(index)["labels"].tolist() for index in range(6)]
    assert [len(batch) for batch in labels] == [4, 4, 2, 4, 4, 2]
    for epoch in (labels[:3], labels[3:]):
        assert sorted(label for batch in epoch for label in batch) == [*range(10)]
    assert labels[:3] != labels[3:] and source.epochs(6) == 2
    again = ShuffledImages(FEW, batch_size=4, seed=3, augment=ALL)
    for index in (5, 0, 3):  # in any order
        for name, tensor in again.batch(index).items():
            assert torch.equal(tensor, source.batch(index)[name])


def test_the_change_of_an_image_follows_from_seed_image_and_epoch_alone() -> None:
    def changed(batch_size: int, epoch: int, seed: int = 3) -> dict[int, torch.Tensor]:
        source = ShuffledImages(FEW, batch_size=batch_size, seed=seed, augment=ALL)
        batches = -(-10 // batch_size)
        found: dict[int, torch.Tensor] = {}
        for index in range(epoch * batches, (epoch + 1) * batches):
            batch = source.batch(index)
            found |= dict(zip(batch["labels"].tolist(), batch["inputs"], strict=True))
        return found

    for image, first in changed(4, 1).items():
        assert torch.equal(first, changed(10, 1)[image]), "whatever the batch"
        assert not torch.equal(first, changed(4, 2)[image])
        assert not torch.equal(first, changed(4, 1, seed=4)[image])


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    height, width = image.shape[-2:]
    return F.pad(image, (right, -right, down, -down))[..., :height, :width]


def test_a_shift_moves_by_whole_pixels_and_a_flip_mirrors() -> None:
    images = image_batch(FEW)["inputs"]
    draws = torch.from_numpy(np.random.default_rng(1).random((10, 7)))
    moves = {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}
    seen = set()
    for flip in (False, True):
        for before, after in zip(
            images, augment(images, AugmentConfig(shift=1, flip=flip), draws), strict=True
        ):
            options = {(move, False): shifted(before, *move) for move in moves}
            if flip:
                options |= {(move, True): shifted(before, *move).flip(-1) for move in moves}
            equal = [
                key for key, it in options.items() if torch.allclose(it, after, rtol=0, atol=1e-6)
            ]
            assert equal, "it is none of the shifts"
            seen |= {*equal}
    assert len({move for move, _ in seen}) >= 5 and {mirrored for _, mirrored in seen} == {
        False,
        True,
    }


def test_rotation_and_scale_agree_with_pillow() -> None:
    picture = Image.fromarray(np.uint8(np.hypot(*np.mgrid[-14:14, -10:18]) * 8))
    inputs = torch.from_numpy(np.asarray(picture) / 255).float()[None, None]
    draws = torch.full((1, 7), 0.5, dtype=torch.float64)
    draws[:, 2] = 1.0  # the largest angle
    turned = augment(inputs, AugmentConfig(rotate=30), draws)[0, 0]
    for sign in (1, -1):
        expected = np.asarray(picture.rotate(sign * 30, Image.Resampling.BILINEAR)) / 255
        if np.abs(turned.numpy() - expected)[6:-6, 6:-6].max() < 0.02:
            break
    else:
        raise AssertionError("rotated by another angle")
    draws[:, 2], draws[:, 3] = 0.5, 1.0
    larger = augment(inputs, AugmentConfig(scale=0.5), draws)[0, 0]
    expected = np.asarray(
        picture.transform((28, 28), Image.Transform.EXTENT, (14 - 28 / 3, 14 - 28 / 3, 14 + 28 / 3, 14 + 28 / 3), Image.Resampling.BILINEAR)
    ) / 255  # fmt: skip
    assert np.abs(larger.numpy() - expected)[1:-1, 1:-1].max() < 0.02


def test_an_erased_square_is_black_and_nothing_else_changes() -> None:
    inputs = torch.ones(50, 2, 8, 6)
    draws = torch.from_numpy(np.random.default_rng(2).random((50, 7)))
    erased = augment(inputs, AugmentConfig(erase=0.5), draws)
    assert (erased == 0).sum(dim=(1, 2, 3)).tolist() == [2 * 4 * 4] * 50
    assert (erased == 0).any(dim=0).all(), "anywhere"


def test_no_augmentation_gives_the_pixels_themselves() -> None:
    batch = ShuffledImages(FEW, batch_size=10).batch(0)
    expected = torch.from_numpy(FEW.pixels[batch["labels"], :, :, 0] / 16).float()
    assert torch.equal(batch["inputs"][:, 0], expected)
    passes = [*OrderedImages(FEW, 4)]
    assert [len(batch["labels"]) for batch in passes] == [4, 4, 2] and len(
        OrderedImages(FEW, 4)
    ) == 3
