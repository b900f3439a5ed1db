"""Parts of the studies of benign overfitting (arXiv:2206.00501)."""
