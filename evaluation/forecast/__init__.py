"""Forecasts before a rollout: how long each stage takes to prove, and its minimum detectable effects."""
