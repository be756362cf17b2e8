"""jaxpto: batched, flexible-cell molecular dynamics with foundational force fields in JAX."""

import jaxlib.version as _jaxlib_version

if _jaxlib_version.__version__ == "0.10.2":
    raise ImportError(
        "jaxlib 0.10.2 silently returns wrong numbers for batched reductions on CPU; "
        "jaxpto does not start on it. Remedy: pip install 'jax!=0.10.2' 'jaxlib!=0.10.2'"
    )

from jaxpto._version import __version__
from jaxpto.calculator import JaxptoCalculator
from jaxpto.errors import InputError
from jaxpto.integrators.npt_parrinello_rahman import npt_parrinello_rahman
from jaxpto.integrators.nve import nve
from jaxpto.integrators.nvt_langevin import nvt_langevin
from jaxpto.integrators.state import Integrator, MDState
from jaxpto.model_interface import Prediction
from jaxpto.models.catalogue import list_models, load_potential
from jaxpto.models.folder import save_potential
from jaxpto.neighbors import Neighbors, allocate, build
from jaxpto.potential import Potential
from jaxpto.system import System, from_ase, to_ase

__all__ = [
    "InputError",
    "Integrator",
    "JaxptoCalculator",
    "MDState",
    "Neighbors",
    "Potential",
    "Prediction",
    "System",
    "__version__",
    "allocate",
    "build",
    "from_ase",
    "list_models",
    "load_potential",
    "npt_parrinello_rahman",
    "nve",
    "nvt_langevin",
    "save_potential",
    "to_ase",
]
