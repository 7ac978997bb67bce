"""Documents to shards. Offline, restartable."""
