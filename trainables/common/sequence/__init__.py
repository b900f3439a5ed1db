"""Sequence models in lanes: Transformers, recurrent nets and mixtures of both, many of a shape at once."""
