"""Source algorithms: learners by name or of one's own, and the recorder of their histories."""
