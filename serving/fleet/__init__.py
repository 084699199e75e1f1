"""Versions as Ray Serve applications: the fleet's state, its actor, vLLM engines and their devices."""
