"""A/B tests of a running service: spec, outcomes, results, and the service that runs them."""
