"""The HTTP API under /v1 and the commands behind it."""
