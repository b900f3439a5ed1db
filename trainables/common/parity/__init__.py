"""Learning parity with noise: samples, classical solvers, and what makes a network a part of one.

A sample is one 64-bit word: the query in its low bits, the label in bit LABEL. The xor of two samples is a sample.
"""
