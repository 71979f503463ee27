"""The library is compiled, or it is said in one line why not; the build hook passes that on."""

import ctypes
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nwc.kernels import native_library
from nwc.kernels.native import compile as script

ROOT = Path(__file__).parents[2]


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.raises(script.CompileError, match="no-such-compiler was not found"):
        script.compile_library(tmp_path / "libnwc.so")
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_refuses_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", f"{sys.executable} -c 'raise SystemExit(\"too old\")'")
    with pytest.raises(script.CompileError, match="failed with 1: too old"):
        script.compile_library(tmp_path / "libnwc.so")
    assert list(tmp_path.iterdir()) == []


def test_it_compiles_without_a_warning(tmp_path):
    path = tmp_path / "libnwc.so"
    try:
        script.compile_library(path, ("-Wall", "-Wextra", "-Wpedantic", "-Werror"))
    except script.CompileError as error:
        if "was not found" in str(error):
            pytest.skip(str(error))
        raise
    assert ctypes.CDLL(str(path)).nwc_version() == native_library.VERSION


@pytest.fixture
def hook(monkeypatch, tmp_path):
    """The build hook on a copy of the tree that holds only what it reads."""
    interface = ModuleType("hatchling.builders.hooks.plugin.interface")

    class Interface:
        root = str(tmp_path)

    interface.BuildHookInterface = Interface
    for name in ("hatchling", "hatchling.builders", "hatchling.builders.hooks"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "hatchling.builders.hooks.plugin", ModuleType("plugin"))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    folder = tmp_path / "src/nwc/kernels/native"
    folder.mkdir(parents=True)
    for path in Path(script.FOLDER).iterdir():
        if path.suffix in (".c", ".h", ".py"):
            (folder / path.name).write_bytes(path.read_bytes())
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NativeBuildHook()


def fresh():
    return {"artifacts": [], "pure_python": True}


def test_without_a_compiler_the_wheel_is_pure(hook, monkeypatch, capsys):
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.delenv("NWC_REQUIRE_NATIVE", raising=False)
    stale = Path(hook.root) / "src/nwc/kernels/native" / script.LIBRARY.name
    stale.write_bytes(b"of an older build")
    data = fresh()
    hook.initialize("standard", data)
    assert data == fresh()
    assert not stale.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "nwc is built without compiled kernels (no C compiler: no-such-compiler was not found)"
    )


def test_a_required_library_that_cannot_be_built_is_an_error(hook, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("NWC_REQUIRE_NATIVE", "1")
    with pytest.raises(RuntimeError, match="compiled kernels are required: no C compiler"):
        hook.initialize("standard", fresh())


@pytest.mark.parametrize("version", ["standard", "editable"])
def test_with_a_compiler_the_wheel_is_of_this_platform(hook, monkeypatch, version):
    if not native_library.available():
        pytest.skip("no compiled kernels here")
    monkeypatch.delenv("CC", raising=False)
    data = fresh()
    hook.initialize(version, data)
    (artifact,) = data["artifacts"]
    assert (Path(hook.root) / artifact).exists()
    assert data["pure_python"] is False
    assert data["tag"].startswith("py3-none-")
    assert "-" not in data["tag"].removeprefix("py3-none-")
