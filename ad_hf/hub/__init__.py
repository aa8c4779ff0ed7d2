"""Cards for datasets and models."""
