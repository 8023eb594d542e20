"""The training stage: one plain loop for students and teachers, exact resume, several processes."""
