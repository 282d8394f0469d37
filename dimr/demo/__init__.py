"""The demo: a small DiMR trained on handwritten digits and measured, in a few minutes on any machine."""
