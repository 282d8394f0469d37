"""A small DiMR trained on handwritten digits and measured, from nothing to pictures in minutes."""
