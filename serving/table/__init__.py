"""The route table and the records log of a service: pure cores, their actors, and the controller's client."""
