"""Parts of the trainer (`python -m jaxpto.train`)."""
