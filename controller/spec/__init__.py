"""User-facing specs of services, versions and policies: one schema for YAML, the API and Kubernetes. Pure."""
