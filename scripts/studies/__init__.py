"""Studies: what is compared, run cell by cell, and pictures of what a model does."""
