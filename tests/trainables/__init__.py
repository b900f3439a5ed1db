"""Tests of the room `trainables`."""
