"""The running controller: ticks under a lease, services kept, and the adapters they act through."""
