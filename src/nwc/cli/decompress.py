"""`nwc decompress`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nwc.cli.arguments import DTYPES, CodecFile, Compressed, Folder
from nwc.cli.console import Command, out, progress
from nwc.formats.checkpoint import Checkpoint
from nwc.formats.writer import FolderWriter


@dataclass(frozen=True, kw_only=True)
class Decompress(Command):
    """Turn a compressed folder back into an ordinary checkpoint.

    Example: nwc decompress OUT --output MODEL-restored
    """

    model: Compressed
    """Compressed folder."""
    output: Folder
    """Folder to make."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of all floating-point tensors."""
    codec: CodecFile = None
    """Codec file, for a folder that only refers to one that is not shipped."""
    overwrite: bool = False
    """Replace an existing output."""

    def run(self) -> int:
        """See the class."""
        checkpoint = Checkpoint(self.model, self.codec)
        config = checkpoint.config()
        if config is not None:
            config["dtype"] = self.dtype
            config.pop("torch_dtype", None)
        keys = checkpoint.keys()
        with (
            FolderWriter(self.output, self.model, overwrite=self.overwrite) as writer,
            progress("decompressing", len(keys)) as advance,
        ):
            for key, value in checkpoint.tensors(DTYPES[self.dtype]):
                writer.add(key, value)
                advance(1, key)
            writer.finish(config, {})
            writer.publish()
        out.print(f"{self.output}: {len(keys)} tensors in {self.dtype}", markup=False)
        return 0
