"""The four root folders reach users as one package: in a checkout, an sdist and a wheel."""

import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import spikebit

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
FLOORS = ("kernels", "quant", "learning_rules", "simulator")


def package_files(folder: Path) -> list[Path]:
    """Lists what of one root folder belongs into the wheel: everything but links and caches."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return [p for p in files if "__pycache__" not in p.parts and not p.name.startswith(".")]


def in_package(path: Path) -> str:
    """Gives the path of a checkout's file inside the installed package."""
    inner = path.relative_to(ROOT).as_posix()
    return inner if inner.startswith("spikebit/") else f"spikebit/{inner}"


EXPECTED = {in_package(p) for folder in ("spikebit", *FLOORS) for p in package_files(ROOT / folder)}


def test_every_folder_with_code_is_a_declared_package():
    # A sub-package missing from the list works in an editable install and is absent from the wheel.
    with_init = {Path(p).parent for p in EXPECTED if p.endswith("/__init__.py")}
    assert {p.as_posix().replace("/", ".") for p in with_init} == set(SETUPTOOLS["packages"])
    with_code = {Path(p).parent for p in EXPECTED if p.endswith(".py")}
    assert with_code == with_init


def test_the_map_and_the_links_name_the_same_folders():
    mapped = {"spikebit": "spikebit"} | {f"spikebit.{floor}": floor for floor in FLOORS}
    assert SETUPTOOLS["package-dir"] == mapped
    links = [p for p in (ROOT / "spikebit").iterdir() if p.is_symlink()]
    assert {p.name: p.readlink().as_posix() for p in links} == {f: f"../{f}" for f in FLOORS}


def test_static_checkers_and_coverage_look_at_every_floor():
    pyright = PYPROJECT["tool"]["pyright"]["include"]
    assert set(pyright) == {"spikebit"} | {f"spikebit/{floor}" for floor in FLOORS}
    assert set(PYPROJECT["tool"]["coverage"]["run"]["source"]) == set(FLOORS)


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_cannot_be_imported_under_its_folder_name(floor):
    # Else `import quant` in the checkout would load a second copy of every class.
    assert importlib.import_module(f"spikebit.{floor}").__version__ == spikebit.__version__
    source = (ROOT / floor / "__init__.py").read_text()
    first = re.sub(r'\A(?:#.*\n|\s)*"""(?s:.*?)"""\s*', "", source).splitlines()[0]
    assert first == "from .. import __version__ as __version__"
    code = f"import {floor}"
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "attempted relative import beyond top-level package" in run.stderr


def test_nothing_that_python_imports_lies_at_the_root():
    assert list(ROOT.glob("*.py")) == []


def test_there_is_one_version():
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "spikebit.__version__"}
    found = [p for p in EXPECTED if p.endswith(".py") and _assigns_version(p)]
    assert found == ["spikebit/__init__.py"]


def _assigns_version(path: str) -> bool:
    file = ROOT / path if path == "spikebit/__init__.py" else ROOT / path.removeprefix("spikebit/")
    return re.search(r"^__version__\s*=", file.read_text(), re.MULTILINE) is not None


def test_the_installed_version_is_the_one_in_the_checkout():
    assert importlib.metadata.version("spikebit") == spikebit.__version__


def test_required_dependencies_are_light_and_extras_complete():
    required = {Requirement(r).name for r in PROJECT["dependencies"]}
    assert {"jax", "flax", "optax", "numpy", "numba", "matplotlib"} <= required
    assert required.isdisjoint({"torch", "triton", "jax-triton", "dask", "h5py", "transformers"})
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {
        "llm", "instruments", "cluster", "gpu", "interchange", "notebooks", "dev", "bench",
    }  # fmt: skip
    with_torch = {e for e, rs in extras.items() if any(Requirement(r).name == "torch" for r in rs)}
    assert with_torch == {"bench"}


def test_the_console_command_exists():
    module, function = PROJECT["scripts"]["spikebit"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds the sdist of a copy of the checkout, and the wheel from that; needs no network."""
    folder = tmp_path_factory.mktemp("build")
    copy = folder / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("spikebit", *FLOORS):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=skip)
    build = [sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", folder, copy]
    run = subprocess.run(build, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(built):
    wheel = zipfile.ZipFile(built[1])
    names = {n for n in wheel.namelist() if ".dist-info/" not in n}
    assert names == EXPECTED
    assert "spikebit/py.typed" in names


def test_the_wheel_metadata_names_licence_version_and_command(built):
    wheel = zipfile.ZipFile(built[1])
    info = f"spikebit-{spikebit.__version__}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0\n" in metadata
    assert f"Version: {spikebit.__version__}\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    assert "Classifier: Typing :: Typed\n" in metadata
    licence = wheel.read(f"{info}/licenses/LICENSE").decode()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    commands = wheel.read(f"{info}/entry_points.txt").decode()
    assert "spikebit = spikebit.simulator.cli:main" in commands


def test_the_sdist_holds_the_folders_that_the_wheel_is_built_from(built):
    top = f"spikebit-{spikebit.__version__}/"
    with tarfile.open(built[0]) as sdist:
        names = {m.name.removeprefix(top) for m in sdist.getmembers() if m.isfile()}
    wanted = {f.removeprefix("spikebit/") for f in EXPECTED} - {"__init__.py", "py.typed"}
    assert wanted | {"spikebit/__init__.py", "spikebit/py.typed", "LICENSE"} <= names


def test_the_wheel_imports_outside_the_checkout(built, tmp_path):
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(tmp_path)
    # -S leaves out site-packages (and the editable install there) until after our path is set.
    code = (
        "import site, sys; sys.path.insert(0, sys.argv[1]); site.main(); import spikebit;"
        "from spikebit import kernels, quant, learning_rules, simulator;"
        "from spikebit.simulator import data;"
        "print(*(m.__file__ for m in (spikebit, kernels, quant, learning_rules, simulator, data)))"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-S", "-c", code, str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert all(Path(f).is_relative_to(tmp_path) for f in run.stdout.split())
