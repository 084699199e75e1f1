"""From requests to randomised units: assignment, order of settlement, sessions, missing values."""
