"""Where the blocks of models of images are, and what lies around them.

An encoder's blocks are a `ModuleList` whose members have parameters of the same shapes. CLIP and
its like have two encoders; the one that takes images alone is what calibration can run.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from nwc.architectures import IMAGES, inputs_of


class ImageEncoder(NamedTuple):
    """What calibration with images runs. See `skeleton.Skeleton`."""

    blocks_path: str
    body_path: str
    further_blocks: tuple[str, ...]


def find_image_encoder(model: nn.Module) -> ImageEncoder | None:
    """The image encoder of a model; None if it has none of blocks that are alike."""
    lists = _block_lists(model)
    # From the outside in: a classifier is run whole, of CLIP the vision model.
    bodies = [name for name, module in model.named_modules() if inputs_of(module) == {IMAGES}]
    for body in bodies:
        inside = {name: size for name, size in lists.items() if within(name, body)}
        if inside:
            blocks = max(inside, key=lambda name: inside[name])
            further = tuple(name for name in lists if name != blocks)
            return ImageEncoder(blocks, body, further)
    return None


def within(name: str, path: str) -> bool:
    """Whether a module or parameter is at a path or below it.

    Example:
        >>> within("a.b.weight", "a.b"), within("a.bc", "a.b"), within("a", "")
        (True, False, True)
    """
    return not path or name == path or name.startswith(path + ".")


def _block_lists(model: nn.Module) -> dict[str, int]:
    """Path of every outermost list, if its blocks are alike -> parameters in it.

    Lists in lists are stages, between which the features change their shape.
    """
    found: dict[str, int] = {}
    outermost: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(within(name, p) for p in outermost):
            continue
        outermost.append(name)
        shapes = [{n: p.shape for n, p in block.named_parameters()} for block in module]
        if shapes and shapes[0] and all(each == shapes[0] for each in shapes):
            found[name] = sum(p.numel() for p in module.parameters())
    return found
