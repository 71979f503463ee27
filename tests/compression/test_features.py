import pytest
import torch

from nwc.compression.features import FeatureFile


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_batches_come_back_as_they_were(dtype):
    batches = [torch.randn(3, 5, 7).to(dtype) for _ in range(4)]
    with FeatureFile() as features:
        for batch in batches:
            features.append(batch.transpose(0, 1).contiguous().transpose(0, 1))
        assert len(features) == 4
        features[2] = batches[0]
        for found, expected in zip(features, [*batches[:2], batches[0], batches[3]], strict=True):
            assert found.dtype == dtype
            assert torch.equal(found, expected)


def test_the_file_is_gone_with_its_owner(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with FeatureFile() as features:
        features.append(torch.ones(2))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="closed file"):
        features[0]


def test_batches_of_another_shape_are_a_mistake():
    with FeatureFile() as features:
        features.append(torch.ones(2, 3))
        with pytest.raises(AssertionError):
            features.append(torch.ones(3, 3))
        with pytest.raises(IndexError):
            features[5]
