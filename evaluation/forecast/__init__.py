"""Questions asked before a rollout: how long each stage takes to prove, and which harm it can detect."""
