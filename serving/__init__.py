"""The data plane on Ray: routers, route tables, records logs, engines.

Invariant: nothing here imports `controller` or `evaluation`; they read what this package reports.
"""
