"""Running: one short script per question, and the engine that carries it out."""
