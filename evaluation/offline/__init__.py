"""The gate over recorded traffic: arrays in, the same verdicts as live."""
