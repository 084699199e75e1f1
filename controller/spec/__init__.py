"""User-facing spec models: services, versions and policies, one schema for YAML, the API and Kubernetes."""
