"""Text and token corpora, their splits, and batches drawn from them."""
