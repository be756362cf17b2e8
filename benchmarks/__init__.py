"""Speed and accuracy measurements; results are kept as JSON with command and hardware."""
