"""Read model: views of services, rollouts and plans for the CLI, the API and the dashboard. Pure."""
