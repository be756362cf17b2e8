"""What importing and installing the package promises."""

import ast
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import jaxpto

ROOT = pathlib.Path(__file__).parents[1]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_miscompiling_jaxlib_is_refused_with_a_remedy():
    ran = python("import jaxlib.version as v; v.__version__ = '0.10.2'; import jaxpto")
    assert ran.returncode != 0
    assert "0.10.2" in ran.stderr
    assert "pip install" in ran.stderr


def test_importing_starts_no_backend_and_sets_no_flag():
    """A backend started on import would fix the number of CPU devices before a command can choose it."""
    ran = python(
        "import jax, jax.experimental.pallas; before = dict(jax.config.values)\n"  # pallas registers a flag of its own
        "import jaxpto, jaxpto.sweep, jaxpto.train, jaxpto.evaluate, jaxpto.report\n"
        "assert dict(jax.config.values) == before\n"
        "from jaxpto.console.command import configure_devices\n"
        "assert configure_devices(3) == 3, configure_devices(3)\n"
    )
    assert ran.returncode == 0, ran.stderr


def test_importing_jaxpto_imports_neither_jax_nor_what_few_need():
    heavy = [
        "jax",
        "jax_md",
        "flax",
        "orbax",
        "phonopy",
        "seekpath",
        "spglib",
        "matplotlib",
        "h5py",
        "ase",
        "rich",
        "tyro",
    ]
    ran = python(
        f"import jaxpto, sys; loaded = [name for name in {heavy} if name in sys.modules]; assert not loaded, loaded"
    )
    assert ran.returncode == 0, ran.stderr


def test_models_and_dynamics_need_no_plots_phonons_or_jax_md():
    heavy = ["jax_md", "orbax", "phonopy", "seekpath", "matplotlib"]
    code = (
        "import sys, jaxpto\n"
        "jaxpto.load_potential, jaxpto.JaxptoCalculator, jaxpto.npt_parrinello_rahman, jaxpto.build\n"
        f"loaded = set({heavy}) & set(sys.modules); assert not loaded, loaded"
    )
    ran = python(code)
    assert ran.returncode == 0, ran.stderr


def test_each_public_name_is_there_and_each_other_one_is_refused():
    for name in jaxpto.__all__:
        assert getattr(jaxpto, name) is not None
    assert set(jaxpto.__all__) == set(dir(jaxpto))
    # importing a submodule would overwrite a name like it
    assert not {found.name for found in pkgutil.iter_modules(jaxpto.__path__)} & set(jaxpto.__all__)
    with pytest.raises(AttributeError, match="'rnu_sweep'"):
        jaxpto.rnu_sweep  # noqa: B018


def test_type_checkers_see_the_public_names_where_they_are():
    """What is written for type checkers and what is looked up at run time are one list."""
    tree = ast.parse(pathlib.Path(jaxpto.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {}
    for line in block.body:
        assert isinstance(line, ast.ImportFrom)
        for one in line.names:
            place = f"{line.module}:{one.name}"
            seen[one.asname or one.name] = place
    modules = {"mbar": "jaxpto.free_energy.estimators:mbar"}
    assert seen == jaxpto._PLACES | modules


def test_requirements_are_pinned_with_hashes_and_hold_no_address():
    text = (ROOT / "requirements.txt").read_text()
    assert "://" not in text
    assert "jaxlib==0.10.2" not in text
    packages = re.findall(r"^([A-Za-z0-9_.-]+)==", text, re.MULTILINE)
    assert {"jax", "jax-md", "flax", "orbax-checkpoint", "ase", "phonopy", "h5py"} <= set(packages)
    assert not {"torch", "tensorflow"} & set(packages)
    assert text.count("--hash=sha256:") >= len(packages)
    exclusions = (ROOT / "pyproject.toml").read_text()
    assert not re.search("torch|tensorflow|pymatgen", exclusions)  # others may ask for pymatgen; we do not
    assert "jax>=0.9,!=0.10.2" in exclusions
    assert "jaxlib>=0.9,!=0.10.2" in exclusions
