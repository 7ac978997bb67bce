"""Strings to ids and words. No tensors."""
