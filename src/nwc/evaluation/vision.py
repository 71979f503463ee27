"""Classification by models of images, beside the original: accuracy, agreement, divergence.

Whatever the model, it becomes a function from images to the logits of classes: its own head's; the
similarity to prompts that name the classes, through its own text encoder (CLIP, SigLIP); or a head
fitted to its features (DINOv2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nwc.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Pixels = Float[Tensor, "images channels height width"]

Classifier = Callable[["Pixels"], "Float[Tensor, 'images classes']"]

TEMPLATES = ("a photo of a {}.",)
"""Prompt of a class, unless another is given."""


@dataclass(frozen=True, kw_only=True)
class ImageEvaluation:
    """What a model does with images.

    Args:
        accuracy: share of images whose likeliest class is theirs.
        images: how many.
        classes: how many the model chooses from.
        reference_accuracy: of the reference, if there is one.
        kl_divergence: mean KL(reference || model) of the distributions over classes, in nats.
        top1_agreement: share of images whose likeliest class is the same.
    """

    accuracy: float
    images: int
    classes: int
    reference_accuracy: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None


@torch.no_grad()
def evaluate_images(
    model: Classifier,
    batches: Iterable[tuple[Pixels, Int[Tensor, " images"]]],
    reference: Classifier | None = None,
    *,
    on_batch: Callable[[int], None] = lambda images: None,
) -> ImageEvaluation:
    """Evaluate a classifier, beside a reference if one is given.

    Args:
        model: images to logits.
        batches: images as the model takes them, and their classes.
        reference: the original.
        on_batch: called with the number of images done.

    Raises:
        ConfigError: there are no images, more or fewer labels than images, or a label that names
            no class.
    """
    right = reference_right = agreeing = count = classes = 0
    divergence = 0.0
    for batch, wanted in batches:
        if len(wanted) != len(batch):
            raise ConfigError(f"{len(wanted)} labels for {len(batch)} images; give one for each")
        log_p = model(batch).float().log_softmax(1).cpu()
        classes = log_p.shape[1]
        _require_classes(wanted, classes)
        right += int((log_p.argmax(1) == wanted).sum())
        if reference is not None:
            log_q = reference(batch).float().log_softmax(1).cpu()
            if log_q.shape != log_p.shape:
                raise ConfigError(
                    f"the reference has {log_q.shape[1]} classes, the model {classes}; give the "
                    "original of the same model"
                )
            reference_right += int((log_q.argmax(1) == wanted).sum())
            agreeing += int((log_p.argmax(1) == log_q.argmax(1)).sum())
            each = torch.where(log_q > -math.inf, log_q.exp() * (log_q - log_p), 0.0)
            divergence += float(each.sum(dtype=torch.float64))
        count += len(batch)
        on_batch(len(batch))
    if count == 0:
        raise ConfigError("there are no images to evaluate on")
    if reference is None:
        return ImageEvaluation(accuracy=right / count, images=count, classes=classes)
    return ImageEvaluation(
        accuracy=right / count,
        images=count,
        classes=classes,
        reference_accuracy=reference_right / count,
        kl_divergence=divergence / count,
        top1_agreement=agreeing / count,
    )


def _require_classes(labels: Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ConfigError(
            f"there are labels from {low} to {high}, the model has {classes} classes: they are "
            "those of another data set"
        )


def supervised(model: Any) -> Classifier:  # noqa: ANN401  (of transformers)
    """The classifier that a model with a head of its own is."""
    return lambda pixels: model(pixel_values=_fit(pixels, model)).logits


@torch.no_grad()
def zero_shot(
    model: Any,  # noqa: ANN401  (of transformers)
    tokenizer: Any,  # noqa: ANN401
    classes: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> Classifier:
    """Classes by the text encoder's idea of their names (Radford et al., 2021, Sec. 3.1).

    A class's direction is the mean of those of its prompts. Logits are similarities times the
    model's own scale; SigLIP's bias, the same for all classes, plays no part.

    Args:
        model: with an image and a text encoder.
        tokenizer: of the model.
        classes: their names.
        templates: prompts with {} where the name goes.

    Raises:
        ConfigError: a template has no place for the name, or there are no names.
    """
    if not classes:
        raise ConfigError("there are no class names; zero-shot classification needs them")
    for template in templates:
        if "{}" not in template:
            raise ConfigError(f"prompt {template!r} has no {{}} where the name of the class goes")
    length = model.config.text_config.max_position_embeddings
    directions = []
    for name in classes:
        prompts = [template.replace("{}", name) for template in templates]
        # SigLIP was trained on prompts padded to their full length; CLIP does not mind.
        tokens = tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        given = {k: v.to(model.device) for k, v in tokens.items() if k in _TEXT_INPUTS}
        directions.append(_unit(_unit(_pooled(model.get_text_features(**given))).mean(0)))
    text = torch.stack(directions)
    scale = model.logit_scale.detach().float().exp()

    def classify(pixels: Tensor) -> Tensor:
        seen = _pooled(model.get_image_features(pixel_values=_fit(pixels, model)))
        return scale * _unit(seen) @ text.T

    return classify


_TEXT_INPUTS = ("input_ids", "attention_mask")


@torch.no_grad()
def features_of(model: Any, pixels: Pixels) -> Float[Tensor, "images d"]:  # noqa: ANN401
    """What DINOv2's linear evaluation sees: the class token and the mean of the patches.

    Args:
        model: an image encoder without a head.
        pixels: images as it takes them.
    """
    extra = 1 + getattr(model.config, "num_register_tokens", 0)
    hidden = model(pixel_values=_fit(pixels, model)).last_hidden_state.float()
    return torch.cat([hidden[:, 0], hidden[:, extra:].mean(1)], 1)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A head fitted to features of labelled images; it is a function from features to logits."""

    logits: Callable[[Tensor], Tensor]

    def on(self, model: Any) -> Classifier:  # noqa: ANN401  (of transformers)
        """The classifier that it makes of an encoder."""
        return lambda pixels: self.logits(features_of(model, pixels))


def linear_probe(
    features: Float[Tensor, "images d"], labels: Int[Tensor, " images"], *, decay: float = 1e-3
) -> Probe:
    """Multinomial logistic regression on standardised features, by L-BFGS.

    Args:
        features: of the images to learn from.
        labels: their classes.
        decay: weight of the mean square of the coefficients, summed over features.
    """
    classes = int(labels.max()) + 1
    mean, spread = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    x, y = (features - mean) / spread, labels.to(features.device)
    weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = torch.nn.functional.cross_entropy(x @ weight.T + bias, y)
        found = found + decay * weight.square().sum()
        found.backward()
        return found

    with torch.enable_grad():
        optimizer.step(loss)
    w, b = weight.detach(), bias.detach()
    return Probe(logits=lambda f: (f - mean) / spread @ w.T + b)


def nearest_neighbours(
    features: Float[Tensor, "images d"],
    labels: Int[Tensor, " images"],
    *,
    count: int = 20,
    temperature: float = 0.07,
    smoothing: float = 0.01,
) -> Probe:
    """The vote of the nearest images by cosine similarity, as DINO weighs it.

    Args:
        features: of the images that vote.
        labels: their classes.
        count: how many vote.
        temperature: a vote weighs exp(similarity / temperature).
        smoothing: share of the distribution that is spread over all classes, so that one without a
            vote has a logarithm.
    """
    classes = int(labels.max()) + 1
    known, votes = _unit(features), torch.nn.functional.one_hot(labels, classes).float()
    votes = votes.to(features.device)

    def logits(f: Tensor) -> Tensor:
        near, who = (_unit(f) @ known.T).topk(min(count, len(known)), dim=1)
        weights = (near / temperature).softmax(1)
        p = (weights[:, :, None] * votes[who]).sum(1)
        return ((1 - smoothing) * p + smoothing / classes).log()

    return Probe(logits=logits)


def _pooled(output: Any) -> Tensor:  # noqa: ANN401  (a tensor in older releases)
    return (output if isinstance(output, Tensor) else output.pooler_output).float()


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def _fit(pixels: Tensor, model: Any) -> Tensor:  # noqa: ANN401
    return pixels.to(model.device, model.dtype)
