"""Gate policies: what is tested, how strictly, what a stage must prove; parsing and checks."""
