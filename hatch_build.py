"""Build hook: compiles the kernels of `src/nwc/kernels/native` where there is a C compiler.

They are optional. Without a compiler the package is pure Python and decodes with numba;
NWC_REQUIRE_NATIVE=1 makes that an error.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SCRIPT = "src/nwc/kernels/native/compile.py"


class NativeBuildHook(BuildHookInterface):
    """Puts the library beside its sources, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before files are collected, for wheels and for editable installs."""
        root = Path(self.root)
        script = load(root / SCRIPT)
        library: Path = script.LIBRARY
        library.unlink(missing_ok=True)
        try:
            script.compile_library()
        except script.CompileError as error:
            if os.environ.get("NWC_REQUIRE_NATIVE") == "1":
                raise RuntimeError(f"compiled kernels are required: {error}") from error
            print(f"nwc is built without compiled kernels ({error})", file=sys.stderr)  # noqa: T201
            return
        build_data["artifacts"].append(library.relative_to(root).as_posix())
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"


def load(path: Path) -> ModuleType:
    """A file of the package as a module, before the package can be imported."""
    spec = spec_from_file_location("nwc_compile", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def platform_tag() -> str:
    """Tag of this platform.

    Example: linux_x86_64
    """
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
