"""Bounded bracket languages: their source, what a net's attention says about them, and nets that are partly fixed."""
