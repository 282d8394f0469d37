"""Resumable runs that draw many samples: plan, output files, class names, autoencoder."""
