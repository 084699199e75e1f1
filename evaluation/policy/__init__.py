"""What is gated, how strictly, and what a stage must prove; parsing and checks of policy values."""
