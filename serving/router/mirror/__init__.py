"""Copies of requests to a mirrored canary, which no client sees."""
