"""Judges of answers: whether one may vote, and whether it still judges as when it was admitted. Pure."""
