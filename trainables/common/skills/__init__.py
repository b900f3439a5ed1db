"""Skill neurons of a frozen encoder: reading it, probing it, perturbing it."""
