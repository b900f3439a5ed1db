"""Rehearsals of faults: what is killed while a sweep runs, and what it costs. `python -m tests.faults`: a table."""
