import math

import pytest
import torch
from transformers import AutoTokenizer

from nwc.errors import ConfigError
from nwc.evaluation.vision import (
    evaluate_images,
    features_of,
    linear_probe,
    nearest_neighbours,
    supervised,
    zero_shot,
)
from nwc.integrations.images import load_image_model


@pytest.fixture
def pixels():
    return torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def in_batches(pixels, labels, size=5):
    return list(zip(pixels.split(size), labels.split(size), strict=True))


def logits_of(table):
    """A classifier that looks up the logits of image i, whose pixels are all i."""
    return lambda pixels: table[pixels[:, 0, 0, 0].long()]


def test_numbers_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    q = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    images = torch.arange(3.0)[:, None, None, None].expand(-1, 3, 2, 2)
    found = evaluate_images(
        logits_of(p.log() + 7.0),  # a constant changes no distribution
        in_batches(images, torch.tensor([0, 1, 0]), 2),
        logits_of(q.log()),
    )
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.reference_accuracy == pytest.approx(1 / 3)
    assert found.top1_agreement == pytest.approx(2 / 3)
    kl = 0.25 * math.log(0.5) + 0.5 * math.log(2) + 0.6 * math.log(1.5) + 0.4 * math.log(2 / 3)
    assert found.kl_divergence == pytest.approx(kl / 3, abs=1e-6)
    assert (found.images, found.classes) == (3, 3)


def test_a_model_agrees_with_itself(vit, pixels):
    classify = supervised(load_image_model(vit))
    labels = torch.randint(3, (12,), generator=torch.Generator().manual_seed(1))
    found = evaluate_images(classify, in_batches(pixels, labels), classify)
    assert found.kl_divergence == 0
    assert found.top1_agreement == 1
    with torch.no_grad():
        right = load_image_model(vit)(pixel_values=pixels).logits.argmax(1) == labels
    assert found.accuracy == pytest.approx(float(right.float().mean()))


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_zero_shot_is_what_the_model_itself_says(name, request, pixels):
    folder = request.getfixturevalue(name)
    model, tokenizer = load_image_model(folder), AutoTokenizer.from_pretrained(folder)
    names = ["cat", "elephant", "ox"]
    classify = zero_shot(model, tokenizer, names, ["a {}!"])
    tokens = tokenizer(
        [f"a {name}!" for name in names], padding="max_length", max_length=32, return_tensors="pt"
    )
    with torch.no_grad():
        whole = model(pixel_values=pixels, **tokens).logits_per_image
        found = classify(pixels)
    torch.testing.assert_close(found.log_softmax(1), whole.log_softmax(1), atol=1e-4, rtol=1e-4)
    several = zero_shot(model, tokenizer, names, ["a {}!", "the {}"])
    with torch.no_grad():
        assert not torch.allclose(several(pixels), found)


def test_prompts_that_cannot_be(clip):
    model, tokenizer = load_image_model(clip), AutoTokenizer.from_pretrained(clip)
    with pytest.raises(ConfigError, match=r"has no \{\} where the name"):
        zero_shot(model, tokenizer, ["cat"], ["a photo"])
    with pytest.raises(ConfigError, match="no class names"):
        zero_shot(model, tokenizer, [])


def test_features_are_class_token_and_mean_of_patches(dinov2, pixels):
    model = load_image_model(dinov2)
    with torch.no_grad():
        hidden = model(pixel_values=pixels).last_hidden_state
    found = features_of(model, pixels)
    assert found.shape == (12, 64)
    torch.testing.assert_close(found[:, :32], hidden[:, 0])
    torch.testing.assert_close(found[:, 32:], hidden[:, 1:].mean(1))


@pytest.fixture
def clusters():
    """Features of three classes that overlap a little, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (240,), generator=generator)
    centres = torch.randn(3, 10, generator=generator) * 2 + 5
    return centres[labels] + torch.randn(240, 10, generator=generator), labels


def test_linear_probe_is_a_minimum(clusters):
    features, labels = clusters
    probe = linear_probe(features[:120], labels[:120])
    right = probe.logits(features[120:]).argmax(1) == labels[120:]
    assert right.float().mean() > 0.95
    # Scale and shift of a feature are no information.
    moved = linear_probe(features[:120] * 1000 - 3, labels[:120])
    torch.testing.assert_close(
        moved.logits(features * 1000 - 3), probe.logits(features), atol=0.02, rtol=0.02
    )


def test_nearest_neighbours_by_brute_force(clusters):
    features, labels = clusters
    probe = nearest_neighbours(features[:120], labels[:120], count=7, smoothing=0.0)
    found = probe.logits(features[120:]).exp()
    for x, p in zip(features[120:], found, strict=True):
        near = sorted(
            ((float(torch.cosine_similarity(x, y, dim=0)), int(c)) for y, c in
             zip(features[:120], labels[:120], strict=True)), reverse=True,
        )[:7]  # fmt: skip
        votes = [sum(math.exp(s / 0.07) for s, c in near if c == k) for k in range(3)]
        torch.testing.assert_close(p, torch.tensor(votes) / sum(votes), atol=1e-4, rtol=1e-3)
    smooth = nearest_neighbours(features[:120], labels[:120]).logits(features[120:])
    assert torch.isfinite(smooth).all()
    torch.testing.assert_close(smooth.exp().sum(1), torch.ones(120))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1]), "2 labels for 3 images"),
        (torch.tensor([0, 1, 5]), "labels from 0 to 5, the model has 3 classes"),
        (torch.tensor([0, -1, 2]), "labels from -1 to 2"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    images = torch.arange(3.0)[:, None, None, None].expand(-1, 3, 2, 2)
    with pytest.raises(ConfigError, match=message):
        evaluate_images(logits_of(torch.eye(3)), [(images, labels)])


def test_references_of_another_kind_and_no_images():
    images = torch.arange(3.0)[:, None, None, None].expand(-1, 3, 2, 2)
    batches = [(images, torch.tensor([0, 1, 2]))]
    with pytest.raises(ConfigError, match="the reference has 4 classes, the model 3"):
        evaluate_images(logits_of(torch.eye(3)), batches, logits_of(torch.eye(4)))
    with pytest.raises(ConfigError, match="no images"):
        evaluate_images(logits_of(torch.eye(3)), [])
