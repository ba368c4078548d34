"""Items to batches: the part of torch.utils.data."""
