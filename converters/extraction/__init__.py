"""From photos to patches: into a store, or into a chunked folder."""
