"""The model: files that are copied to the Hub with it and run there on torch, numpy and transformers alone."""
