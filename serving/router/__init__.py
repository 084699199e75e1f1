"""The router: assignment, one request's way through attempts, its fronts and its connection to the table."""
