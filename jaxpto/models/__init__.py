"""Force fields: architectures, their catalogue, their checks."""
