"""How the demo model and its sparse autoencoders were trained; `python -m demo.train` runs it."""
