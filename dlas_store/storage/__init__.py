"""The store on disk: shards, their index, and how both are written."""
