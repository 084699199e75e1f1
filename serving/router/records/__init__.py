"""What a router reports: request records on their way out, counters, a file of JSON lines."""
