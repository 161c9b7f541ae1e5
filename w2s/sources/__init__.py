"""Where pairs and models come from: files, folders, the hub."""
