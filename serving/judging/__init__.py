"""Answers for judges: pairs of mirrored answers, kept beside the routers."""
