"""The router: assignment, the state of a request, its fronts, and its clients of table and records log."""
