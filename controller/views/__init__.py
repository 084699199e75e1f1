"""The read model: what the command line, the API and the dashboard show. Pure, decides nothing."""
