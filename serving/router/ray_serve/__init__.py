"""The router as a Ray Serve deployment."""
