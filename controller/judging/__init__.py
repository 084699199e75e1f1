"""Judges of rollouts: their examination beside the ticks."""
