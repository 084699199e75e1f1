"""From requests to randomised units: draws, settlement, sessions, missing values."""
