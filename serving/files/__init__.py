"""What the data plane and the controller read by one rule: weight files, engine arguments, YAML. Pure."""
