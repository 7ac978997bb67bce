"""LAMB, its parameter groups and the learning-rate schedules; no deepspeed and no torch.distributed here."""
