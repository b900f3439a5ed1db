"""Parities with and without a chain of thought (arXiv:2410.05459): rows, attention, histories, a solution."""
