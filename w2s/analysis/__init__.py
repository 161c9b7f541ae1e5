"""Tables from tables: what the predictions of a study show."""
