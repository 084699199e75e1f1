"""Planning of a rollout: fingerprints, risk, stages, capacity, forecast. Pure."""
