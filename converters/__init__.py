"""Published checkpoints into jaxpto models, one source a file."""
