"""HTML pages of ours: one file each, which fetches nothing."""
