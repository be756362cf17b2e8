"""Orbax for one process of a run with several; it would otherwise wait for all of them."""

from __future__ import annotations

from typing import Any

import jax


def process_alone() -> Any:
    """Orbax's `MultiprocessingOptions` for a checkpointer and its handlers that no other process takes part in."""
    import orbax.checkpoint as ocp

    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})


def tree_checkpointer() -> Any:
    """Orbax's `Checkpointer` for one pytree."""
    import orbax.checkpoint as ocp

    alone = process_alone()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
