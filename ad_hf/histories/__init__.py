"""Learning histories: the schema of their datasets, transforms, and the windows that a model is trained on."""
