"""A/B tests: is B better than A, can the outcomes be trusted, how much traffic does the question need."""
