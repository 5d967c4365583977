"""Many rows in, one record for each out: a file of prompts, answered in one go."""
