"""Images, with labels if there are any, from an .npz file, a folder or a `datasets` name."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nwc.calibration.hub import open_dataset
from nwc.errors import CalibrationError

if TYPE_CHECKING:
    from jaxtyping import UInt8

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
_IMAGES, _LABELS, _CLASSES = ("images", "x"), ("labels", "y"), ("classes", "names")
_SHUFFLED = 2048
"""Rows of a streamed data set that are mixed: many are sorted by class."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images of a source.

    Args:
        images: each uint8 [height, width, 3]; those of files are read when they are asked for.
        labels: class of each image, a number; None if it is not known.
        classes: name of each class; None if they have only numbers.

    Raises:
        CalibrationError: a label is not the number of a name.
    """

    images: Sequence[UInt8[np.ndarray, "height width 3"]]
    labels: list[int] | None = None
    classes: list[str] | None = None

    def __post_init__(self) -> None:
        if self.classes is None or not self.labels:
            return
        low, high = min(self.labels), max(self.labels)
        if low < 0 or high >= len(self.classes):
            raise CalibrationError(
                f"there are labels from {low} to {high} and names of {len(self.classes)} classes; "
                "wanted a name for each"
            )

    def __len__(self) -> int:
        return len(self.images)


def is_images(source: str) -> bool:
    """Whether a source can only be images: an .npz file or a folder."""
    path = Path(source)
    return path.is_dir() or (path.is_file() and path.suffix == ".npz")


def read_images(source: str, limit: int = 0) -> ImageSet:
    """Images of a source.

    Args:
        source: an .npz file with `images` (or `x`) as uint8 [images, height, width, 3], and
            perhaps `labels` (or `y`) [images] and `classes`, their names; a folder of image files,
            or of one such folder for each class; or a name that `datasets.load_dataset` takes, as
            NAME or NAME:CONFIG:SPLIT.
        limit: how many to take at most, spread over the source; 0 takes all.

    Raises:
        CalibrationError: there is no such source, or no images in it.
    """
    path = Path(source)
    if path.is_dir():
        found = _folder(path, limit)
    elif path.is_file() and path.suffix == ".npz":
        found = _npz(path, limit)
    elif path.is_file():
        raise CalibrationError(
            f"{source} is no images: wanted an .npz file with arrays images and labels, or a "
            "folder with one folder of image files for each class"
        )
    else:
        found = _dataset(source, limit)
    if not len(found.images):
        raise CalibrationError(f"{source} holds no images; name a source with some")
    return found


def _spread(count: int, limit: int) -> list[int]:
    """So many places, or all: sources are often sorted by class.

    Example:
        >>> _spread(10, 4)
        [0, 2, 5, 7]
    """
    taken = min(count, limit) if limit else count
    return [i * count // taken for i in range(taken)]


def _npz(path: Path, limit: int) -> ImageSet:
    try:
        # numpy would leave a file open that turns out to be damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images = _first(arrays, _IMAGES)
            labels = _first(arrays, _LABELS)
            classes = _first(arrays, _CLASSES)
            known = list(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise CalibrationError(
            f"{path} is not a readable .npz file: {error}; write it anew with "
            "numpy.savez(path, images=..., labels=...)"
        ) from error
    if images is None:
        raise CalibrationError(
            f"{path} has arrays {', '.join(known) or 'none'}; wanted images, and labels"
        )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise CalibrationError(
            f"images of {path} are {images.dtype} {list(images.shape)}, wanted uint8 "
            "[images, height, width, 3]"
        )
    if labels is not None and (
        labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer)
    ):
        raise CalibrationError(
            f"labels of {path} are {labels.dtype} {list(labels.shape)}, wanted an integer for "
            f"each of {len(images)} images"
        )
    places = _spread(len(images), limit)
    return ImageSet(
        images=[images[i] for i in places],
        labels=None if labels is None else [int(labels[i]) for i in places],
        classes=None if classes is None else [str(name) for name in classes],
    )


def _first(arrays: Any, names: tuple[str, ...]) -> np.ndarray | None:  # noqa: ANN401
    return next((arrays[name] for name in names if name in arrays), None)


def _folder(path: Path, limit: int) -> ImageSet:
    classes = sorted(p.name for p in path.iterdir() if p.is_dir())
    files: list[tuple[Path, int]] = [(file, -1) for file in _files(path)]
    if not files:
        files = [(file, i) for i, name in enumerate(classes) for file in _files(path / name)]
    labelled = bool(files) and files[0][1] >= 0
    chosen = [files[i] for i in _spread(len(files), limit)]
    return ImageSet(
        images=_Files([file for file, _ in chosen]),
        labels=[label for _, label in chosen] if labelled else None,
        classes=classes if labelled else None,
    )


class _Files(Sequence[np.ndarray]):
    """Images in files, read one by one."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: Any) -> Any:  # noqa: ANN401  (an index or a slice)
        if isinstance(i, slice):
            return [_read(file) for file in self._files[i]]
        return _read(self._files[i])


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in _SUFFIXES)


def _read(file: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  (an extra)

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise CalibrationError(f"{file} is not a readable image: {error}") from error


def _dataset(source: str, limit: int) -> ImageSet:
    name, rows = open_dataset(source, "a file or folder")
    names = getattr((rows.features or {}).get("label"), "names", None)
    if limit:
        rows = rows.shuffle(seed=0, buffer_size=_SHUFFLED).take(limit)
    images, labels = [], []
    for image, label in _rows(rows, name):
        images.append(image)
        labels.append(label)
    known = [label for label in labels if label is not None]
    return ImageSet(
        images=images, labels=known if len(known) == len(labels) else None, classes=names
    )


def _rows(rows: Any, name: str) -> Iterator[tuple[np.ndarray, int | None]]:  # noqa: ANN401
    for row in rows:
        image = row.get("image", row.get("img"))
        if not hasattr(image, "convert"):
            raise CalibrationError(f'data set {name} has columns {sorted(row)}, wanted "image"')
        label = row.get("label")
        yield np.asarray(image.convert("RGB")), label if isinstance(label, int) else None
