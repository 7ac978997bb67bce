"""A run for eyes: live in a terminal, and as one page for a browser. Reads what the run wrote, and nothing else."""
