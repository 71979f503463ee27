"""Makes nwc known to transformers, whichever of the two is imported first.

transformers discovers no plug-ins: somebody has to call it. `import nwc` must stay light, so it
does not import transformers; it registers at once if the registry of quantisers is there already,
and otherwise the moment that it is imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

_REGISTRY = "transformers.quantizers.auto"


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds the registry as Python would, and registers nwc in it once it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if fullname != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_when_imported() -> None:
    """Make `AutoModelForCausalLM.from_pretrained` read compressed folders."""
    if _REGISTRY in sys.modules:
        _register()
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def _register() -> None:
    try:
        from nwc.integrations.hf_quantizer import register
    except ImportError as error:
        # Other models must still load; a compressed one is refused (see formats/layout).
        warnings.warn(
            f"nwc does not fit the installed transformers ({error}); from_pretrained will not "
            "read compressed folders, nwc.load_model may. Versions 5.0 to 5.23 are tested",
            stacklevel=2,
        )
        return
    register()
