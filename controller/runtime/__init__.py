"""The running controller: lease, service loops, reconciler, keeper, and the adapters of their ports."""
