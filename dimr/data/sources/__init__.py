"""Sources of pictures: a folder, an ``.npz`` file, tar shards, a Hugging Face data set."""
