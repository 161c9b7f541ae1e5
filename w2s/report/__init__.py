"""Words, figures and pages of tables."""
