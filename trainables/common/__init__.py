"""Parts that at least two studies use."""
