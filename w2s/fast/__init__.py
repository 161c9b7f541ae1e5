"""Speed that may be deleted without changing a result."""
