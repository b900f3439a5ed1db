"""Tests of the room `search_spaces`."""
