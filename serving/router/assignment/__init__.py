"""Assignment of requests to arms: keys, weights, affinity tokens, clients, burst caps. Pure."""
