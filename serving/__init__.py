"""The data plane: what runs on Ray workers between a user's request and an engine.

Invariant: nothing here imports `controller` or `evaluation`; they read what this package reports.
"""
