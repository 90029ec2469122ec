"""The demo: a small language model of Python source, sparse autoencoders of it, and the text they are shown on."""
