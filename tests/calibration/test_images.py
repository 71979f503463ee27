import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nwc.calibration.images import _spread, is_images, read_images
from nwc.errors import CalibrationError


@given(st.integers(1, 500), st.integers(0, 600))
def test_places_are_spread_and_never_repeat(count, limit):
    places = _spread(count, limit)
    assert len(places) == (min(count, limit) or count)
    assert len(set(places)) == len(places)
    assert places[0] == 0
    assert max(places) < count
    steps = np.diff(places)
    assert steps.size == 0 or steps.max() - steps.min() <= 1


def test_npz(images):
    found = read_images(str(images))
    assert len(found) == 48
    assert found.classes == ["blue", "green", "red"]
    assert found.images[0].shape == (16, 16, 3)
    some = read_images(str(images), 12)
    assert [some.labels[i] for i in range(12)] == [found.labels[4 * i] for i in range(12)]
    assert np.array_equal(some.images[1], found.images[4])
    assert is_images(str(images))


def test_short_names_and_no_labels(images, tmp_path):
    with np.load(images) as arrays:
        np.savez(tmp_path / "x.npz", x=arrays["images"], y=arrays["labels"])
        np.savez(tmp_path / "plain.npz", images=arrays["images"])
    found = read_images(str(tmp_path / "x.npz"))
    assert found.labels == read_images(str(images)).labels
    assert found.classes is None
    assert read_images(str(tmp_path / "plain.npz")).labels is None


def test_folder_by_class(tmp_path):
    for name, value, count in (("cat", 10, 3), ("ant", 200, 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("L", (6, 5), value).save(tmp_path / name / f"{i}.png")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    found = read_images(str(tmp_path))
    assert found.classes == ["ant", "cat"]
    assert found.labels == [0, 0, 1, 1, 1]
    assert found.images[0].shape == (5, 6, 3)  # grey becomes three equal channels
    assert [int(image[0, 0, 0]) for image in found.images[:]] == [200, 200, 10, 10, 10]
    assert read_images(str(tmp_path / "cat")).labels is None


def test_a_broken_image_is_named_when_it_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n but not really")
    found = read_images(str(tmp_path))
    with pytest.raises(CalibrationError, match=r"a\.png is not a readable image"):
        found.images[0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 4, 4, 3), np.uint8)}, "has arrays pictures; wanted images"),
        ({"images": np.zeros((2, 4, 4), np.uint8)}, r"uint8 \[2, 4, 4\], wanted uint8"),
        ({"images": np.zeros((2, 4, 4, 3))}, r"float64 \[2, 4, 4, 3\], wanted uint8"),
        ({"images": np.zeros((2, 3, 4, 4), np.uint8)}, r"wanted uint8 \[images, height"),
        (
            {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.zeros(3, int)},
            "an integer for each of 2 images",
        ),
        (
            {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.zeros(2)},
            "an integer for each of 2 images",
        ),
        (
            {
                "images": np.zeros((2, 4, 4, 3), np.uint8),
                "labels": np.array([0, -1]),
                "classes": np.array(["a"]),
            },
            "labels from -1 to 0 and names of 1 classes",
        ),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, "holds no images"),
        ({"images": np.array([None, {}], object)}, "is not a readable .npz"),
    ],
)
def test_arrays_that_are_no_images(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(CalibrationError, match=message):
        read_images(str(tmp_path / "a.npz"))


def test_damaged_npz(images, tmp_path):
    data = images.read_bytes()
    for end in (0, 10, len(data) // 2, len(data) - 30):
        (tmp_path / "cut.npz").write_bytes(data[:end])
        with pytest.raises(CalibrationError, match=r"is not a readable \.npz file"):
            read_images(str(tmp_path / "cut.npz"))


def test_sources_that_are_none(tmp_path, text):
    with pytest.raises(CalibrationError, match="holds no images"):
        read_images(str(tmp_path))
    with pytest.raises(CalibrationError, match=r"is no images: wanted an \.npz file"):
        read_images(str(text))
    assert not is_images(str(text))
