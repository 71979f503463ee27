import pytest
import torch

from nwc.compression.features import FeatureFile


def file_of(path, batches=4, dtype=torch.float32):
    return FeatureFile(path=path, batches=batches, shape=torch.Size((3, 5, 7)), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_batches_come_back_as_they_were(dtype, tmp_path):
    batches = [torch.randn(3, 5, 7).to(dtype) for _ in range(4)]
    features = file_of(tmp_path / "x.bin", dtype=dtype)
    writer = features.writer()
    for batch in batches:
        assert not features.complete
        writer.append(batch.transpose(0, 1).contiguous().transpose(0, 1))
    assert features.complete
    for i, batch in enumerate(batches):
        assert features[i].dtype == dtype
        assert torch.equal(features[i], batch)
    with pytest.raises(IndexError):
        features[4]


def test_an_unfinished_file_is_not_there(tmp_path):
    features = file_of(tmp_path / "x.bin")
    writer = features.writer()
    writer.append(torch.ones(3, 5, 7))
    writer.abandon()
    assert not features.complete
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_size_is_not_complete(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"short")
    assert not file_of(tmp_path / "x.bin").complete


def test_batches_of_another_shape_are_a_mistake(tmp_path):
    writer = file_of(tmp_path / "x.bin").writer()
    with pytest.raises(AssertionError):
        writer.append(torch.ones(3, 3))
    writer.abandon()
