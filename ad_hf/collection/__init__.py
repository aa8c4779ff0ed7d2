"""Collection: a source learns every task of a family, and its learning histories become a dataset."""
