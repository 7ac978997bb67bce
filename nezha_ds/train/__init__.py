"""The run: DeepSpeed engine, loop, evaluation, checkpoints; the only room that knows of ranks talking."""
