"""Spot-adaptive distillation from cached features (Song et al. 2022); README.md says what is there."""
