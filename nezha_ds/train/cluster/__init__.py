"""`nezha-ds doctor --cluster`: the nodes of a run measured together, and judged."""
