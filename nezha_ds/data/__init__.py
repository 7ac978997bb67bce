"""Shards to masked batches: a plan of samples, an order of epochs, masks, and one thread that stays ahead."""
