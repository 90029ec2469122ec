"""Our pipeline against other tools: the same language model, SAE and tokens, each in its own virtual environment."""
