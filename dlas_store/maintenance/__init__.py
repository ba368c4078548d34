"""Work on whole stores: verify, reindex, info."""
