"""Teachers and students: architectures, preprocessing, weights, last layers."""
