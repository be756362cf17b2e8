"""Which recipe an architecture is trained by."""

from __future__ import annotations

from jaxpto.model_interface import Model
from jaxpto.models.perovskite import Perovskite
from jaxpto.training.perovskite_recipe import WHITENED
from jaxpto.training.recipe import PLAIN, Recipe


def recipe_of(model: Model) -> Recipe:
    """The recipe of a model's architecture; that of all models for those that have none of their own."""
    return WHITENED if isinstance(model, Perovskite) else PLAIN
