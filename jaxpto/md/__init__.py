"""The batched molecular dynamics run."""
