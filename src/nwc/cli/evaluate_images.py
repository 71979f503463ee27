"""`nwc eval --images`: which kind of classifier a model is, and what it needs beside images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nwc.architectures import is_classifier
from nwc.calibration.images import ImageSet, read_images
from nwc.cli.console import progress
from nwc.errors import ConfigError
from nwc.evaluation.vision import (
    TEMPLATES,
    Classifier,
    Probe,
    evaluate_images,
    features_of,
    linear_probe,
    nearest_neighbours,
    supervised,
    zero_shot,
)
from nwc.integrations.images import image_processor_of, require_image_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCH = 64
"""Images in one forward pass."""


@dataclass(kw_only=True)
class ImageTask:
    """Images, and how a model that has no classes of its own is made to choose from theirs.

    Args:
        source: of the images; see `read_images`.
        folder: of the model, with its image processor and tokenizer.
        limit: images at most; 0 takes all.
        class_names: file of class names, one a line.
        templates: prompts with {} where the name goes; `TEMPLATES` if there are none.
        probe_images: labelled images that a head is fitted to.
        probe_limit: how many of them at most; 0 takes all.
        probe: linear or knn.
    """

    source: str
    folder: Path
    limit: int = 0
    class_names: Path | None = None
    templates: Sequence[str] = ()
    probe_images: str | None = None
    probe_limit: int = 0
    probe: str = "linear"

    def run(self, model: PreTrainedModel, reference: PreTrainedModel | None) -> dict[str, Any]:
        """Evaluate a model, beside the original if that is given.

        A head is fitted to the original's features, where there is one: that is how published
        heads came about.

        Raises:
            NWCError: the images do not fit the model, or something is missing.
        """
        numbers: list[int] | None = None
        if is_classifier(model):
            make: Callable[[Any], Classifier] = supervised
            how = "head"
            numbers = self._own_classes(model)
        elif hasattr(model, "get_text_features"):
            make, how = self._zero_shot, "zero-shot"
        else:
            make, how = self._probe(reference or model).on, self.probe
        classifier = make(model)
        original = None if reference is None else make(reference)
        with progress("evaluating", len(self._images)) as advance:
            found = evaluate_images(
                classifier, self._batches(model, self._images, self.source, numbers), original,
                on_batch=advance,
            )  # fmt: skip
        return {k: v for k, v in dataclasses.asdict(found).items() if v is not None} | {
            "classifier": how
        }

    @cached_property
    def _images(self) -> ImageSet:
        return read_images(self.source, self.limit)

    @cached_property
    def _process(self) -> Callable[[Sequence[np.ndarray]], Tensor]:
        return image_processor_of(self.folder)

    def _batches(
        self,
        model: PreTrainedModel,
        images: ImageSet,
        source: str,
        numbers: list[int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images as the model takes them, and their labels, some at a time.

        Args:
            model: that takes them.
            images: all of them.
            source: their name, for errors.
            numbers: what the model calls each of their classes; None for the same numbers.
        """
        if images.labels is None:
            raise ConfigError(
                f"{source} has no labels; wanted an array labels in the .npz file, or one folder "
                "for each class"
            )
        for start in range(0, len(images), _BATCH):
            pixels = self._process(images.images[start : start + _BATCH])
            require_image_size(model, pixels)
            labels = torch.tensor(images.labels[start : start + _BATCH])
            yield pixels, labels if numbers is None else torch.tensor(numbers)[labels]

    def _own_classes(self, model: Any) -> list[int] | None:  # noqa: ANN401
        """The model's number of each class of the images; None if they are numbered alike.

        Raises:
            ConfigError: there are more or fewer classes than the model has.
        """
        names, own = self._images.classes, model.config.id2label
        if names is None:
            return None
        wanted = [str(own[i]) for i in sorted(own)]
        if len(names) != len(wanted):
            raise ConfigError(
                f"{self.source} has {len(names)} classes ({names[0]}, ...), the model "
                f"{len(wanted)} ({wanted[0]}, ...); they must be the same"
            )
        # Names of another kind (WordNet's numbers for ImageNet) are taken to be in its order.
        return [wanted.index(name) for name in names] if set(names) == set(wanted) else None

    def _zero_shot(self, model: PreTrainedModel) -> Classifier:
        from transformers import AutoTokenizer

        names = self._images.classes
        if self.class_names is not None:
            names = [line.strip() for line in self.class_names.read_text().splitlines()]
            names = [name for name in names if name]
        if names is None:
            raise ConfigError(
                f"{self.source} does not name its classes, and zero-shot classification needs "
                "names; give --class-names FILE with one a line"
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder)
        except Exception as error:  # raised by several libraries
            raise ConfigError(
                f"{self.folder} has no tokenizer that loads ({str(error).splitlines()[0]}); add "
                "its tokenizer files"
            ) from error
        return zero_shot(model, tokenizer, names, self.templates or TEMPLATES)

    def _probe(self, model: PreTrainedModel) -> Probe:
        if self.probe_images is None:
            raise ConfigError(
                f"{type(model).__name__} has no classes of its own: give --probe-images with "
                "labelled images that a head can be fitted to (other images than --images)"
            )
        if self.probe_images == self.source:
            raise ConfigError("--probe-images are --images; a head must be judged on others")
        train = read_images(self.probe_images, self.probe_limit)
        features, labels = [], []
        with progress("fitting a head", len(train)) as advance:
            for pixels, wanted in self._batches(model, train, self.probe_images):
                features.append(features_of(model, pixels))
                labels.append(wanted)
                advance(len(wanted))
        fit = linear_probe if self.probe == "linear" else nearest_neighbours
        return fit(torch.cat(features), torch.cat(labels))
