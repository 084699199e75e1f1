"""Route table and records log of a service: pure cores, their actors, and the controller's client."""
