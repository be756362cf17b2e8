"""jaxpto: batched, flexible-cell molecular dynamics with foundational force fields in JAX."""

import jaxlib.version as _jaxlib_version

if _jaxlib_version.__version__ == "0.10.2":
    raise ImportError(
        "jaxlib 0.10.2 silently returns wrong numbers for batched reductions on CPU; "
        "jaxpto does not start on it. Remedy: pip install 'jax!=0.10.2' 'jaxlib!=0.10.2'"
    )

__version__ = "0.1.0"
