"""A/B tests: comparison, validity of the experiment, sample size."""
