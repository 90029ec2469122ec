"""The demo: a small language model of Python source, sparse autoencoders of it, and their text."""
