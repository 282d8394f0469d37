"""Pixel shuffle with a sum, ``y + shuffle(x)``, and its inverse."""
