"""Feature distillers: losses between what passes inside a student and inside its teacher. Pure tensors, no stores."""
