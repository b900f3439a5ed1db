"""Tasks that ask for what stands earlier in the text (arXiv:2402.18510), and how models answer them."""
