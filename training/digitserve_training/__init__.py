"""Train, evaluate and export digit networks; the serving side is the package ``digitserve``."""
