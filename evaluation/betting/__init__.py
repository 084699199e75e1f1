"""E-processes against the router's own coin: the wealth process, its channels, intervals for display."""
