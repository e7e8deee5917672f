"""Training: recipes, songs with stems, augmentation, losses, the loop."""
