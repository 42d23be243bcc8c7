"""Imports run downwards only, and only the required dependencies are needed to import a floor."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("kernels", "quant", "learning_rules", "simulator")  # each may import those before it
# Packages installed under another name, or brought by another package in the very version it needs.
INSTALLED_AS = {"orbax": "orbax-checkpoint", "distributed": "dask", "llvmlite": "numba"}


def broken_rules(root: Path, required: set[str], optional: set[str]) -> list[str]:
    """Checks every .py file of the floors under root; returns one line for each broken rule."""
    broken = []
    for floor in FLOORS:
        for path in sorted((root / floor).rglob("*.py")):
            file = path.relative_to(root)
            for line, module, at_top in _imports(ast.parse(path.read_text()), file):
                # A file of GPU kernels is imported in functions only, so it may need an extra.
                at_top = at_top and not path.stem.endswith("_gpu")
                fault = _fault(floor, module, at_top, required, optional)
                if fault:
                    broken.append(f"{file}:{line}: {fault}")
    return broken


def _imports(tree: ast.Module, file: Path) -> Iterator[tuple[int, str, bool]]:
    """Yields line, absolute module name (ours start with a dot) and "runs when the file loads"."""
    lazy = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            lazy.update(ast.walk(node))
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            lazy.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, node not in lazy
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module or "", node not in lazy
        elif isinstance(node, ast.ImportFrom):
            package = ("spikebit", *file.parent.parts)
            base = package[: max(0, len(package) - node.level + 1)]
            above = (*base, node.module) if node.module else base
            for alias in node.names:
                yield node.lineno, "." + ".".join((*above, alias.name)), node not in lazy


def _fault(floor: str, module: str, at_top: bool, required: set[str], optional: set[str]) -> str:
    """Says what is wrong with one import from a file of `floor`, or nothing."""
    top = module.split(".")[0]
    if module.startswith("."):
        package, *inner = module[1:].split(".")
        if package != "spikebit" or not inner:
            return f"a relative import of {module[1:]} leaves the package"
        name = inner[0]
        if name == "__version__":
            return ""
        if name not in FLOORS:
            return f"spikebit.{name} is no floor"
        if at_top and any(part.endswith("_gpu") for part in inner):
            return f"{module[1:]} needs an extra: import it in the function that needs it"
        above = FLOORS.index(name) > FLOORS.index(floor)
        return f"{floor} must not import {name}, a floor above it" if above else ""
    if top == "spikebit":
        return f"imports inside the package are relative, not `{module}`"
    if top in sys.stdlib_module_names:
        return ""
    distribution = _normal(INSTALLED_AS.get(top, top))
    if distribution in required:
        return ""
    if distribution not in optional:
        return f"{top} is not among the dependencies in pyproject.toml"
    return f"{top} is optional: import it in the function that needs it" if at_top else ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _names(requirements: list[str]) -> set[str]:
    return {_normal(Requirement(r).name) for r in requirements}


def test_imports_run_downwards_only():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for_users = {n for e in extras if e not in ("dev", "bench") for n in _names(extras[e])}
    assert broken_rules(ROOT, _names(project["dependencies"]), for_users) == []


def test_the_facade_imports_nothing():
    tree = ast.parse((ROOT / "spikebit" / "__init__.py").read_text())
    assert list(_imports(tree, Path("__init__.py"))) == []


@pytest.mark.parametrize(
    ("file", "code", "fault"),
    [
        ("kernels/a.py", "from ..quant import formats", "a floor above it"),
        ("kernels/a.py", "from .. import simulator", "a floor above it"),
        ("kernels/a.py", "def f():\n    from ..quant.formats import parse", "a floor above it"),
        ("kernels/__init__.py", "from ..learning_rules import rule", "a floor above it"),
        ("quant/ptq/a.py", "from ...simulator.data import load", "a floor above it"),
        ("learning_rules/a.py", "try:\n    from .. import simulator\nexcept E: ...", "above it"),
        ("quant/a.py", "if TYPE_CHECKING:\n    from ..simulator import cli", "a floor above it"),
        ("simulator/a.py", "from spikebit.quant import formats", "are relative"),
        ("simulator/a.py", "import spikebit.quant.formats as f", "are relative"),
        ("simulator/a.py", "from .. import tests", "is no floor"),
        ("quant/a.py", "from ...quant import formats", "leaves the package"),
        ("quant/a.py", "import torch", "not among the dependencies"),
        ("quant/a.py", "import quant", "not among the dependencies"),
        ("simulator/a.py", "import numpy, h5py", "h5py is optional"),
        ("simulator/a.py", "try:\n    import h5py\nexcept ImportError: ...", "h5py is optional"),
        ("simulator/a.py", "class A:\n    from distributed import Client", "is optional"),
        ("simulator/a.py", "from jax_triton import f", "jax_triton is optional"),
        ("kernels/a.py", "from . import spikes_gpu", "spikes_gpu needs an extra"),
        ("kernels/a.py", "from .spikes_gpu import forward", "needs an extra"),
        ("kernels/a_gpu.py", "from ..quant import formats", "a floor above it"),
    ],
)
def test_a_broken_rule_is_found(tmp_path, file, code, fault):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"import os\n{code}\n")
    lines = broken_rules(tmp_path, {"numpy", "orbax-checkpoint"}, {"h5py", "dask", "jax-triton"})
    assert len(lines) == 1
    assert lines[0].startswith(f"{file}:")
    assert fault in lines[0]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("kernels/__init__.py", "from .. import __version__ as __version__\nfrom . import spikes"),
        ("quant/ptq/a.py", "from ... import kernels\nfrom .. import formats\nfrom . import b"),
        ("simulator/a.py", "from ..kernels import x\nfrom ..learning_rules.rule import y"),
        ("simulator/data/a.py", "from ..encoding import x\nfrom ... import quant"),
        ("simulator/a.py", "import numpy.random\nimport orbax.checkpoint as ocp, json"),
        ("simulator/a.py", "def f():\n    import h5py\n    from distributed import Client"),
        ("simulator/a.py", "if typing.TYPE_CHECKING:\n    import h5py"),
        ("kernels/a_gpu.py", "import h5py"),
        ("kernels/a.py", "def f():\n    from . import a_gpu"),
    ],
)
def test_what_is_allowed_is_not_reported(tmp_path, file, code):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(code)
    required, optional = {"numpy", "orbax-checkpoint"}, {"h5py", "dask"}
    assert broken_rules(tmp_path, required, optional) == []
