"""What a change is and what a rollout of it will do: fingerprints, risk, stages, capacity, forecast. Pure."""
