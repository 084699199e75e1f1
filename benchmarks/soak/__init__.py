"""Fault matrix: a canary fails in every way, and clients that check every byte see nothing."""
