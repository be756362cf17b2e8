"""What importing and installing the package promises."""

import pathlib
import re
import subprocess
import sys

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
