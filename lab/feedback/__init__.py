"""AI feedback: a judge's labels and how far to trust them; critique and revision under a constitution."""
